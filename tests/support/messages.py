"""What a message names: keys, values, places. Its words may change, these may not."""


def mentions(message: str, parts: str) -> bool:
    """Whether a message holds these parts in order: `mentions(text, "line 2: ... d_model")`."""
    at = 0
    for part in parts.split(" ... "):
        found = message.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
