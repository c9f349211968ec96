import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { folder, needs, run } from "../support/machine.ts";
import { ROOT } from "../support/simulated-host.ts";

test(
  "the benchmark runs, and the bounds that no other work on the machine can break are kept",
  needs("root", "build", "runc", "busybox", "valgrind"),
  (t) => {
    const file = path.join(folder(t), "bench.json");
    const script = path.join(ROOT, "test/bench/bench.ts");
    const r = run(process.execPath, ["--import", "tsx", script, "--quick", "--output", file], { cwd: ROOT });
    assert.deepEqual([r.err, r.code], ["", 0]);
    const result = JSON.parse(fs.readFileSync(file, "utf8"));
    const exact = result.bounds.filter((bound: { exact: boolean }) => bound.exact);
    assert.deepEqual(
      exact.map((bound: { what: string }) => bound.what),
      ["peak memory of the injection", "the injection", "the executable"],
    );
    for (const { what, value, limit, unit } of exact)
      assert.ok(value <= limit, `${what}: ${value} of ${limit} ${unit}`);
    assert.equal(result.isStatic, true);
    assert.match(r.out, /\nA container with 48 files and 5 nodes: /);
  },
);
