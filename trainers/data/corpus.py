"""Open the corpus that a configuration names."""

from trainers.data import sources
from trainers.data.documents import Corpus, Document, Split

__all__ = ["Corpus", "Document", "Split", "open_corpus"]


def open_corpus(config: sources.Corpus) -> Corpus:
    """Open and fingerprint a corpus of any kind.

    Raises:
        InputError: the corpus cannot be found, read or split.
    """
    # Import a kind's reader and its libraries only if that kind is used.
    match config:
        case sources.PythonSource():
            from trainers.data.python_source import PythonSourceCorpus

            return PythonSourceCorpus()
        case sources.TextFiles():
            from trainers.data.text_files import TextCorpus

            return TextCorpus(config)
        case sources.HubDataset():
            from trainers.data.hub_corpus import HubCorpus

            return HubCorpus(config)
