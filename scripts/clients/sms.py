"""What the checks of both Python clients share."""

import os
import re
import time

URL = os.environ["MESSAGER_URL"]
PHONE = os.environ["PHONE"]
# Of the right form, and no phone's.
UNUSABLE = "+7999000"


def code() -> str:
    """What the console shows of the SMS, when it does."""
    line = re.compile(rf"^SMS to {PHONE[1:]}: Your code: (\d+)$", re.MULTILINE)
    for _ in range(300):
        with open(os.environ["MESSAGER_OUT"]) as shown:
            if found := line.search(shown.read()):
                return found[1]
        time.sleep(0.1)
    raise AssertionError("no SMS was shown")


def other_than(code: str) -> str:
    return "000001" if code == "000000" else "000000"


def check(found, expected):
    assert found == expected, f"{found} is not {expected}"
