from openapi_client import ApiClient, ApiException, ChecksApi, Configuration, VerificationsApi
from openapi_client.models import Check, CheckByPhone, Problem, Start

from sms import PHONE, UNUSABLE, URL, check, code, other_than

client = ApiClient(Configuration(host=URL))
verifications, checks = VerificationsApi(client), ChecksApi(client)

started = verifications.start_verification(Start(phone=PHONE))
check(started.status, "pending")
right = code()
wrong = other_than(right)
first = checks.check_code(started.id, Check(code=wrong))
check((first.valid, first.status, first.attempts_left), (False, "pending", 4))
second = checks.check_code(started.id, Check(code=right))
check((second.valid, second.status, second.attempts_left), (True, "approved", None))
by_phone = checks.check_code_by_phone(CheckByPhone(phone=PHONE, code=wrong))
check((by_phone.valid, by_phone.status), (False, None))
found = verifications.get_verification(started.id)
check(found.status, "approved")
assert "approved" in [event.type for event in found.events], found.events


def problem(call) -> Problem:
    try:
        call()
    except ApiException as error:
        assert isinstance(error.data, Problem), error.data
        return error.data
    raise AssertionError("not refused")


refused = problem(lambda: verifications.start_verification(Start(phone=UNUSABLE)))
check((refused.status, refused.code, refused.errors[0].pointer), (422, "invalid", "/phone"))
unknown = problem(lambda: verifications.get_verification("ver_0"))
check((unknown.status, unknown.code), (404, "not-found"))
