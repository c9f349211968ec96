import assert from "node:assert/strict";
import * as fs from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const read = (file: string): string => fs.readFileSync(`${ROOT}/${file}`, "utf8");

test("every finding of the doctor is in docs/doctor.md once, with the severity that it has", () => {
  const told = new Map(
    [...read("docs/doctor.md").matchAll(/^\| `([a-z0-9-]+)` \| ([^|]+) \|/gm)].map(([, code, severity]) => [
      code,
      severity,
    ]),
  );
  const source = ["src/cli/doctor-checks.ts", "src/cli/doctor-node-checks.ts", "src/cli/doctor.part.ts"]
    .map(read)
    .join("\n");
  const codes = new Set(
    [...source.matchAll(/(?:code: |\[\s*)"([a-z]+(?:-[a-z]+)+)"/g)].map(([, code]) => code as string),
  );
  assert.ok(codes.size > 30, "the codes are found");
  assert.deepEqual([...told.keys()].sort(), [...codes].sort());
  for (const [, code, severity] of source.matchAll(/code: "([a-z-]+)",\s+severity: "(\w+)"/g)) {
    assert.match(told.get(code) ?? "", new RegExp(`\\b${severity}\\b`), code);
  }
});
