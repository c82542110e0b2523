// ExecuTorch's C++ interface, in the libraries and headers of the package executorch 1.5.
#include "runtime.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

// The package has the library and not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
   public:
    bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;

struct Input {
    std::vector<executorch::aten::SizesType> sizes;
    executorch::aten::ScalarType type;
    std::vector<unsigned char> bytes;
    TensorPtr tensor;
};

std::unique_ptr<Module> module_;
std::vector<Input> inputs;
std::vector<EValue> arguments, results;
size_t output_count = 0;

const char* failed(const char* what, Error error) {
    return sentence("ExecuTorch could not %s: error 0x%x", what, static_cast<unsigned>(error));
}

}  // namespace

extern "C" {

const char* runtime_name(void) { return "ExecuTorch, C++"; }
size_t runtime_inputs(void) { return inputs.size(); }
size_t runtime_outputs(void) { return output_count; }

const char* runtime_load(const char* file, int threads) {
    auto* pool = executorch::extension::threadpool::get_threadpool();
    if (!pool || !pool->_unsafe_reset_threadpool(static_cast<uint32_t>(threads)))
        return "ExecuTorch could not set the number of threads";
    module_ = std::make_unique<Module>(file, Module::LoadMode::Mmap);
    const Error error = module_->load_method("forward");
    if (error != Error::Ok) return failed("load the file (XNNPACK needs a readable /sys)", error);
    const auto meta = module_->method_meta("forward");
    if (!meta.ok()) return failed("read the file", meta.error());
    if (meta->num_inputs() > MOST_TENSORS || meta->num_outputs() > MOST_TENSORS)
        return "the file has too many inputs or outputs";
    output_count = meta->num_outputs();
    for (size_t i = 0; i < meta->num_inputs(); i++) {
        const auto tensor = meta->input_tensor_meta(i);
        if (!tensor.ok()) return failed("read an input", tensor.error());
        Input input;
        input.sizes.assign(tensor->sizes().begin(), tensor->sizes().end());
        input.type = tensor->scalar_type();
        input.bytes.resize(tensor->nbytes());
        inputs.push_back(std::move(input));
    }
    for (auto& input : inputs) {
        input.tensor = from_blob(input.bytes.data(), input.sizes, input.type);
        arguments.emplace_back(input.tensor);
    }
    return nullptr;
}

const char* runtime_set_input(size_t place, const void* bytes, size_t size) {
    auto& wanted = inputs[place].bytes;
    if (wanted.size() != size) return sentence("input %zu has %zu bytes, %zu were given", place, wanted.size(), size);
    std::memcpy(wanted.data(), bytes, size);
    return nullptr;
}

const char* runtime_run(void) {
    auto result = module_->execute("forward", arguments);
    if (!result.ok()) return failed("run", result.error());
    results = std::move(result.get());
    return nullptr;
}

const char* runtime_get_output(size_t place, const void** bytes, size_t* size) {
    if (place >= results.size() || !results[place].isTensor()) return "an output is no tensor";
    const auto& tensor = results[place].toTensor();
    *bytes = tensor.const_data_ptr();
    *size = tensor.nbytes();
    return nullptr;
}
}
