"""Reading and describing the file formats, without their converters."""
