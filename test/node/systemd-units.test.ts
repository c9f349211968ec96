import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { folder } from "../support/machine.ts";
import { ROOT } from "../support/simulated-host.ts";

const UNITS = path.join(ROOT, "packaging/systemd");
const skip = fs.existsSync("/usr/bin/systemd-analyze") ? false : "needs systemd-analyze";

test("systemd finds nothing wrong with the units", { skip }, (t) => {
  const dir = folder(t);
  const units = fs.readdirSync(UNITS).filter((name) => name.endsWith(".service"));
  assert.ok(units.length >= 2);
  for (const unit of units) {
    const text = fs.readFileSync(path.join(UNITS, unit), "utf8");
    // What they start is not installed here, which would be told too.
    const file = path.join(dir, unit);
    fs.writeFileSync(file, text.replace(/^(Exec\w+=-?)\/usr\/bin\/\w+/gm, "$1/bin/true"));
    const { status, stderr, stdout } = spawnSync("systemd-analyze", ["verify", file], { encoding: "utf8" });
    assert.deepEqual([status, stderr, stdout], [0, "", ""], unit);
  }
});
