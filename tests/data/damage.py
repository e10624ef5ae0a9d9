"""Damage to files, as hypothesis draws it: a list of (kind, place as a share of the file, number)."""

HEAD_BYTES = 600


def damaged(content, changes, place_of=lambda share: share, others=()):
    """The bytes of a file after some changes.

    Args:
        place_of: from what is drawn to the share of the file before the change.
        others: files that may be appended.
    """
    content = bytearray(content)
    for kind, drawn, number in changes:
        at = int(place_of(drawn) * (len(content) - 1)) if content else 0
        if kind == "set" and content:
            content[at] = number
        elif kind == "head" and content:
            # Most of what a header says is near the start.
            content[min(at, int(drawn * HEAD_BYTES))] = number
        elif kind == "large":
            content[at : at + 4] = b"\xff\xff\xff\x7f"
        elif kind == "cut":
            del content[at:]
        elif kind == "repeat":
            content[at:at] = content[at : at + number]
        elif kind == "remove":
            del content[at : at + number]
        elif kind == "append":
            content += others[number]
    return bytes(content)
