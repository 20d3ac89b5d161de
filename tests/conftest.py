"""What holds for all tests."""

from hypothesis import settings

# No test asserts a wall-clock time: the machine may be busy.
settings.register_profile("widthlab", deadline=None)
settings.load_profile("widthlab")
