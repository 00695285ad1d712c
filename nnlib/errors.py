"""What can be wrong with files and bytes that the library reads."""


class ModelError(OSError):
    """A file that can't be read as the model that was asked for."""


class DataError(OSError):
    """A data set, photo or text that is missing, can't be fetched, or isn't what it should be."""


class CorruptError(ValueError):
    """Bytes that no encoder wrote: damaged, cut short, or claiming something impossible."""
