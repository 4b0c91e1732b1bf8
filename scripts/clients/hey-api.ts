import { client } from "./generated/client.gen";
import { checkCode, checkCodeByPhone, getVerification, startVerification } from "./generated";
import { check, code, phone, unusable, url } from "./check";

client.setConfig({ baseUrl: url });

const started = await startVerification({ body: { phone } });
check(started.response?.status, 202);
const { id, status } = started.data!;
check(status, "pending");
const right = await code();
const wrong = right === "000000" ? "000001" : "000000";
const first = (await checkCode({ path: { id }, body: { code: wrong } })).data!;
check([first.valid, first.status, first.attempts_left], [false, "pending", 4]);
const second = (await checkCode({ path: { id }, body: { code: right } })).data!;
check([second.valid, second.status, second.attempts_left], [true, "approved", undefined]);
const byPhone = (await checkCodeByPhone({ body: { phone, code: wrong } })).data!;
check([byPhone.valid, byPhone.status], [false, undefined]);
const found = (await getVerification({ path: { id } })).data!;
check(found.status, "approved");
check(found.events.some((event) => event.type === "approved"), true);

const refused = await startVerification({ body: { phone: unusable } });
check(refused.response?.status, 422);
check([refused.error!.code, refused.error!.errors?.[0].pointer], ["invalid", "/phone"]);
const unknown = await getVerification({ path: { id: "ver_0" } });
check([unknown.response?.status, unknown.error!.code], [404, "not-found"]);
