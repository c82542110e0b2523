// ExecuTorch's C++ interface, in the libraries and headers of the package executorch 1.5.
#include "runtime.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/core/event_tracer.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
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
using executorch::runtime::Result;

struct Input {
    std::vector<executorch::aten::SizesType> sizes;
    executorch::aten::ScalarType type;
    std::vector<unsigned char> bytes;
    TensorPtr tensor;
};

// What ExecuTorch tells an event tracer, kept as it comes: ETDump's own file would have to be believed by its reader.
class Tracer final : public executorch::runtime::EventTracer {
    using Chain = executorch::runtime::ChainID;
    using Handle = executorch::runtime::DebugHandle;
    using Entry = executorch::runtime::EventTracerEntry;
    using Index = executorch::runtime::DelegateDebugIntId;
    using Tensor = executorch::aten::Tensor;

   public:
    struct Event {
        std::string name;
        bool delegated;
        Chain chain;
        Handle place;
        et_timestamp_t start, end;
    };
    std::vector<Event> events;

    Entry start_profiling(const char* name, Chain chain, Handle place) override {
        return begin(name, false, chain, place);
    }
    void end_profiling(Entry entry) override { end(entry); }
    Entry start_profiling_delegate(const char* name, Index) override {
        return begin(name, true, executorch::runtime::kUnsetChainId, 0);
    }
    void end_profiling_delegate(Entry entry, const void*, size_t) override { end(entry); }
    void log_profiling_delegate(
        const char* name, Index, et_timestamp_t start, et_timestamp_t end, const void*, size_t) override {
        events.push_back({name ? name : "", true, chain_id_, debug_handle_, start, end});
    }
    void create_event_block(const char*) override {}
    void track_allocation(executorch::runtime::AllocatorID, size_t) override {}
    executorch::runtime::AllocatorID track_allocator(const char*) override { return 0; }
    Result<bool> log_evalue(const EValue&, executorch::runtime::LoggedEValueType) override { return false; }
    Result<bool> log_intermediate_output_delegate(const char*, Index, const Tensor&) override { return false; }
    Result<bool> log_intermediate_output_delegate(
        const char*, Index, const executorch::runtime::ArrayRef<Tensor>) override {
        return false;
    }
    Result<bool> log_intermediate_output_delegate(const char*, Index, const int&) override { return false; }
    Result<bool> log_intermediate_output_delegate(const char*, Index, const bool&) override { return false; }
    Result<bool> log_intermediate_output_delegate(const char*, Index, const double&) override { return false; }
    void set_delegation_intermediate_output_filter(executorch::runtime::EventTracerFilterBase*) override {}

   private:
    Entry begin(const char* name, bool delegated, Chain chain, Handle place) {
        const bool unset = chain == executorch::runtime::kUnsetChainId;
        open_.push_back({name ? name : "", delegated, unset ? chain_id_ : chain, unset ? debug_handle_ : place, 0, 0});
        Entry entry{};
        entry.event_id = static_cast<int64_t>(open_.size()) - 1;
        entry.start_time = executorch::runtime::pal_current_ticks();
        return entry;
    }
    void end(const Entry& entry) {
        const et_timestamp_t now = executorch::runtime::pal_current_ticks();
        if (entry.event_id < 0 || static_cast<size_t>(entry.event_id) >= open_.size()) return;
        Event& event = open_[static_cast<size_t>(entry.event_id)];
        event.start = entry.start_time;
        event.end = now;
        events.push_back(std::move(event));
        // Scopes close from the inside out: what is behind is closed already.
        open_.resize(static_cast<size_t>(entry.event_id));
    }
    std::vector<Event> open_;
};

Tracer* tracer = nullptr;  // module_ owns it.
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

const char* runtime_load(const char* file, int threads, int profiled) {
    auto* pool = executorch::extension::threadpool::get_threadpool();
    if (!pool || !pool->_unsafe_reset_threadpool(static_cast<uint32_t>(threads)))
        return "ExecuTorch could not set the number of threads";
    std::unique_ptr<Tracer> made = profiled ? std::make_unique<Tracer>() : nullptr;
    tracer = made.get();
    inputs.clear();
    arguments.clear();
    results.clear();
    output_count = 0;
    module_ = std::make_unique<Module>(file, Module::LoadMode::Mmap, std::move(made));
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
    if (tracer) tracer->events.clear();
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

const char* runtime_note_kernels(void) {
    static const std::string kernel = "native_call_";
    const auto ratio = et_pal_ticks_to_ns_multiplier();
    for (const auto& event : tracer->events) {
        // What only encloses others (the call of a delegate, the method) is left out.
        const bool portable = event.name.compare(0, kernel.size(), kernel) == 0;
        if (!event.delegated && !portable) continue;
        const auto ticks = static_cast<int64_t>(event.end - event.start);
        const char* name = event.name.c_str() + (portable ? kernel.size() : 0);
        const char* wrong = note_kernel(name, event.delegated, event.chain, event.place,
                                        ticks * static_cast<int64_t>(ratio.numerator) /
                                            static_cast<int64_t>(ratio.denominator));
        if (wrong) return wrong;
    }
    return nullptr;
}
}
