import createClient from "openapi-fetch";
import type { paths, components } from "./schema";
import { check, code, phone, unusable, url } from "./check";

const client = createClient<paths>({ baseUrl: url });

// Only `phone` may be required.
const start: components["schemas"]["Start"] = { phone };
const started = await client.POST("/v1/verifications", { body: start });
check(started.response.status, 202);
const { id, status } = started.data!;
check(status, "pending");
const right = await code();
const wrong = right === "000000" ? "000001" : "000000";
const tried = async (code: string) => {
  const path = { id };
  return client.POST("/v1/verifications/{id}/checks", { params: { path }, body: { code } });
};
const first = (await tried(wrong)).data!;
check([first.valid, first.status, first.attempts_left], [false, "pending", 4]);
const second = (await tried(right)).data!;
check([second.valid, second.status, second.attempts_left], [true, "approved", undefined]);
const byPhone = await client.POST("/v1/verifications/check", { body: { phone, code: wrong } });
check([byPhone.data!.valid, byPhone.data!.status], [false, undefined]);
const found = await client.GET("/v1/verifications/{id}", { params: { path: { id } } });
check(found.data!.status, "approved");
check(found.data!.events.some((event) => event.type === "approved"), true);

const refused = await client.POST("/v1/verifications", { body: { phone: unusable } });
check(refused.response.status, 422);
check([refused.error!.code, refused.error!.errors?.[0].pointer], ["invalid", "/phone"]);
const unknown = await client.GET("/v1/verifications/{id}", { params: { path: { id: "ver_0" } } });
check([unknown.response.status, unknown.error!.code], [404, "not-found"]);
