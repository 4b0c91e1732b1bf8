import {
  ChecksApi, Configuration, ProblemFromJSON, ResponseError, VerificationsApi,
} from "./generated/index";
import { check, code, phone, unusable, url } from "./check";

const configuration = new Configuration({ basePath: url });
const verifications = new VerificationsApi(configuration);
const checks = new ChecksApi(configuration);

const { id, status, expiresAt } = await verifications.startVerification({ start: { phone } });
check([status, expiresAt instanceof Date], ["pending", true]);
const right = await code();
const wrong = right === "000000" ? "000001" : "000000";
const first = await checks.checkCode({ id, check: { code: wrong } });
check([first.valid, first.status, first.attemptsLeft], [false, "pending", 4]);
const second = await checks.checkCode({ id, check: { code: right } });
check([second.valid, second.status, second.attemptsLeft], [true, "approved", undefined]);
const byPhone = await checks.checkCodeByPhone({ checkByPhone: { phone, code: wrong } });
check([byPhone.valid, byPhone.status], [false, undefined]);
const found = await verifications.getVerification({ id });
check(found.status, "approved");
check(found.events.some((event) => event.type === "approved"), true);

async function problem(call: Promise<unknown>) {
  const error = await call.then(() => undefined, (error) => error);
  if (!(error instanceof ResponseError)) throw new Error(`not refused: ${error}`);
  return ProblemFromJSON(await error.response.json());
}
const refused = await problem(verifications.startVerification({ start: { phone: unusable } }));
check([refused.status, refused.code, refused.errors?.[0].pointer], [422, "invalid", "/phone"]);
const unknown = await problem(verifications.getVerification({ id: "ver_0" }));
check([unknown.status, unknown.code], [404, "not-found"]);
