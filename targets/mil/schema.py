"""The messages of a Core ML specification that an ML program needs: field number, name and kind of each."""

from __future__ import annotations

from acmix.targets.mil.protobuf import Field, Schema


def _one(name: str, kind: str) -> Field:
    return Field(name, kind)


def _many(name: str, kind: str) -> Field:
    return Field(name, kind, repeated=True)


def _map(name: str, kind: str) -> Field:
    return Field(name, kind, repeated=True, is_map=True)


def _entry(kind: str) -> dict[int, Field]:
    return {1: _one("key", "string"), 2: _one("value", kind)}


SCHEMA: Schema = {
    "Model": {1: _one("specificationVersion", "int"), 2: _one("description", "ModelDescription")}
    | {502: _one("mlProgram", "Program")}
    | {number: _one("older", "Nothing") for number in (*range(200, 203), *range(300, 502), *range(555, 3001))},
    "Nothing": {},
    "ModelDescription": {
        1: _many("input", "FeatureDescription"),
        10: _many("output", "FeatureDescription"),
        13: _many("state", "FeatureDescription"),
        20: _many("functions", "FunctionDescription"),
        21: _one("defaultFunctionName", "string"),
        100: _one("metadata", "Metadata"),
    },
    "Metadata": {100: _map("userDefined", "TextEntry")},
    "TextEntry": _entry("string"),
    "FunctionDescription": {
        1: _one("name", "string"),
        2: _many("input", "FeatureDescription"),
        3: _many("output", "FeatureDescription"),
        6: _many("state", "FeatureDescription"),
    },
    "FeatureDescription": {1: _one("name", "string"), 3: _one("type", "FeatureType")},
    "FeatureType": {
        1: _one("int64Type", "Nothing"),
        3: _one("stringType", "Nothing"),
        4: _one("imageType", "ImageFeatureType"),
        5: _one("multiArrayType", "ArrayFeatureType"),
        6: _one("dictionaryType", "Nothing"),
        8: _one("stateType", "StateFeatureType"),
        1000: _one("isOptional", "bool"),
    },
    "StateFeatureType": {1: _one("arrayType", "ArrayFeatureType")},
    "ArrayFeatureType": {
        1: _many("shape", "int"),
        2: _one("dataType", "int"),
        21: _one("enumeratedShapes", "EnumeratedShapes"),
        31: _one("shapeRange", "ShapeRange"),
        41: _one("default", "int"),
        51: _one("default", "float"),
        61: _one("default", "double"),
    },
    "EnumeratedShapes": {1: _many("shapes", "Shape")},
    "Shape": {1: _many("shape", "int")},
    "ShapeRange": {1: _many("sizeRanges", "SizeRange")},
    "SizeRange": {1: _one("lowerBound", "uint"), 2: _one("upperBound", "int")},
    "ImageFeatureType": {
        1: _one("width", "int"),
        2: _one("height", "int"),
        3: _one("colorSpace", "int"),
        21: _one("enumeratedSizes", "EnumeratedImageSizes"),
        31: _one("imageSizeRange", "ImageSizeRange"),
    },
    "EnumeratedImageSizes": {1: _many("sizes", "ImageSize")},
    "ImageSize": {1: _one("width", "uint"), 2: _one("height", "uint")},
    "ImageSizeRange": {1: _one("widthRange", "SizeRange"), 2: _one("heightRange", "SizeRange")},
    "Program": {1: _one("version", "int"), 2: _map("functions", "FunctionEntry")},
    "FunctionEntry": _entry("Function"),
    "Function": {
        1: _many("inputs", "NamedValueType"),
        2: _one("opset", "string"),
        3: _map("block_specializations", "BlockEntry"),
    },
    "BlockEntry": _entry("Block"),
    "Block": {1: _many("inputs", "NamedValueType"), 2: _many("outputs", "string"), 3: _many("operations", "Operation")},
    "Operation": {
        1: _one("type", "string"),
        2: _map("inputs", "ArgumentEntry"),
        3: _many("outputs", "NamedValueType"),
        4: _many("blocks", "Block"),
        5: _map("attributes", "ValueEntry"),
    },
    "ArgumentEntry": _entry("Argument"),
    "ValueEntry": _entry("Value"),
    "Argument": {1: _many("arguments", "Binding")},
    "Binding": {1: _one("name", "string"), 2: _one("value", "Value")},
    "NamedValueType": {1: _one("name", "string"), 2: _one("type", "ValueType")},
    "ValueType": {
        1: _one("tensorType", "TensorType"),
        2: _one("listType", "ListType"),
        3: _one("tupleType", "Nothing"),
        4: _one("dictionaryType", "Nothing"),
        5: _one("stateType", "StateType"),
    },
    "TensorType": {1: _one("dataType", "int"), 2: _one("rank", "int"), 3: _many("dimensions", "Dimension")},
    "ListType": {1: _one("type", "ValueType"), 2: _one("length", "Dimension")},
    "StateType": {1: _one("wrappedType", "ValueType")},
    "Dimension": {1: _one("constant", "ConstantDimension"), 2: _one("unknown", "UnknownDimension")},
    "ConstantDimension": {1: _one("size", "uint")},
    "UnknownDimension": {1: _one("variadic", "bool")},
    "Value": {
        2: _one("type", "ValueType"),
        3: _one("immediateValue", "ImmediateValue"),
        5: _one("blobFileValue", "BlobFileValue"),
    },
    "ImmediateValue": {1: _one("tensor", "TensorValue"), 2: _one("tuple", "ListValue"), 3: _one("list", "ListValue")},
    "ListValue": {1: _many("values", "Value")},
    "BlobFileValue": {1: _one("fileName", "string"), 2: _one("offset", "uint")},
    "TensorValue": {
        1: _one("floats", "Floats"),
        2: _one("ints", "Integers"),
        3: _one("bools", "Booleans"),
        4: _one("strings", "Strings"),
        5: _one("longInts", "Integers"),
        6: _one("doubles", "Doubles"),
        7: _one("bytes", "Bytes"),
    },
    "Floats": {1: _many("values", "float")},
    "Doubles": {1: _many("values", "double")},
    "Integers": {1: _many("values", "int")},
    "Booleans": {1: _many("values", "bool")},
    "Strings": {1: _many("values", "string")},
    "Bytes": {1: _one("values", "bytes")},
}
