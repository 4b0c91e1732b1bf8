import { readFileSync } from "node:fs";

export const url = process.env.MESSAGER_URL!;
export const phone = process.env.PHONE!;
// Of the right form, and no phone's.
export const unusable = "+7999000";

// What the console shows of the SMS, when it does.
export async function code(): Promise<string> {
  const line = new RegExp(`^SMS to ${phone.slice(1)}: Your code: (\\d+)$`, "m");
  for (let tries = 0; tries < 300; tries += 1) {
    const found = line.exec(readFileSync(process.env.MESSAGER_OUT!, "utf8"));
    if (found) return found[1];
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("no SMS was shown");
}

export function check(found: unknown, expected: unknown) {
  const [one, other] = [found, expected].map((each) => JSON.stringify(each));
  if (one !== other) throw new Error(`${one} is not ${other}`);
}
