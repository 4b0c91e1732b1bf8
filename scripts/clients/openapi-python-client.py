from messager_client import Client
from messager_client.api.checks import check_code, check_code_by_phone
from messager_client.api.verifications import get_verification, start_verification
from messager_client.models import Check, CheckByPhone, Checked, Problem, Start, Verification
from messager_client.types import UNSET

from sms import PHONE, UNUSABLE, URL, check, code, other_than

client = Client(base_url=URL)

started = start_verification.sync(client=client, body=Start(phone=PHONE))
assert isinstance(started, Verification), started
check(started.status, "pending")
right = code()
wrong = other_than(right)
first = check_code.sync(started.id, client=client, body=Check(code=wrong))
assert isinstance(first, Checked), first
check((first.valid, first.status, first.attempts_left), (False, "pending", 4))
second = check_code.sync(started.id, client=client, body=Check(code=right))
assert isinstance(second, Checked), second
check((second.valid, second.status, second.attempts_left), (True, "approved", UNSET))
by_phone = check_code_by_phone.sync(client=client, body=CheckByPhone(phone=PHONE, code=wrong))
check((by_phone.valid, by_phone.status), (False, UNSET))
found = get_verification.sync(started.id, client=client)
check(found.status, "approved")
assert "approved" in [event.type_ for event in found.events], found.events

refused = start_verification.sync(client=client, body=Start(phone=UNUSABLE))
assert isinstance(refused, Problem), refused
check((refused.status, refused.code, refused.errors[0].pointer), (422, "invalid", "/phone"))
unknown = get_verification.sync("ver_0", client=client)
assert isinstance(unknown, Problem), unknown
check((unknown.status, unknown.code), (404, "not-found"))
