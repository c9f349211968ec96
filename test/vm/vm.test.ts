import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import { describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { folder } from "../support/machine.ts";
import { ROOT } from "../support/simulated-host.ts";
import { boot, needsVm, VmError } from "./vm.ts";

const failsWith = (what: VmError["what"], message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof VmError);
  assert.equal(error.what, what);
  assert.match(error.message, message);
  return true;
};

/** Whether the process runs. One that nobody has waited for yet does not. */
function runs(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

async function ends(pid: number): Promise<void> {
  for (let i = 0; runs(pid); i++) {
    if (i === 1000) throw new Error(`process ${pid} still runs after 10 seconds`);
    await sleep(10);
  }
}

describe("the VM", needsVm(), () => {
  test("gives a script's outcome and files, and ends when a script takes too long", async () => {
    const vm = await boot({ files: { "opt/own/init": `${ROOT}/test/vm/init` } });
    try {
      assert.deepEqual(await vm.run("echo out; echo err >&2; exit 3"), { code: 3, out: "out\n", err: "err\n" });
      await assert.rejects(vm.sh("echo so far; false; echo further"), /exit status 1 of[\s\S]*so far/);
      // What a script leaves running holds up nothing.
      assert.equal(await vm.sh("sleep 600 & echo on"), "on\n");
      assert.equal(await vm.sh("cat /opt/own/init"), fs.readFileSync(`${ROOT}/test/vm/init`, "utf8"));
      const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
      await vm.write("/tmp/it's here/bytes", bytes, 0o600);
      assert.deepEqual(await vm.read("/tmp/it's here/bytes"), bytes);
      assert.equal(await vm.sh(`stat -c %a "/tmp/it's here/bytes"`), "600\n");
      assert.match(await vm.sh("uname -r"), /^\d+\.\d+\.\d+\+deb13-amd64\n$/);

      await vm.sh("echo seen on the console >/dev/console");
      const hangs = vm.run("while :; do :; done", { limitMs: 500 });
      await assert.rejects(hangs, failsWith("hang", /longer than 500 ms to run\nwhile[\s\S]*seen on the console/));
      await assert.rejects(vm.run("true"), failsWith("exit", /gone/));
    } finally {
      await vm.close();
    }
    assert.equal(runs(vm.pid), false);
  });

  test("tells a panic of its kernel apart, with what the kernel said", async () => {
    const vm = await boot();
    try {
      const panics = vm.run("echo c >/proc/sysrq-trigger");
      await assert.rejects(panics, failsWith("panic", /panicked[\s\S]*sysrq triggered crash/));
    } finally {
      await vm.close();
    }
  });

  test("says why it does not start", async () => {
    const starts = boot({ devices: ["no-such-device"] });
    await assert.rejects(starts, failsWith("exit", /ended with 1\. [\s\S]*no-such-device/));
  });

  test("ends with the test that booted it, also when that is killed, and leaves no file", async (t: TestContext) => {
    const tmp = folder(t);
    // The folder is set late: the loader of TypeScript keeps a cache in the one that it finds.
    const program = `import { boot } from ${JSON.stringify(pathToFileURL(`${ROOT}/test/vm/vm.ts`).href)};
      process.env.TMPDIR = ${JSON.stringify(tmp)};
      console.log((await boot()).pid);`;
    const args = ["--import", "tsx", "--input-type=module", "--eval", program];
    const child = spawn(process.execPath, args, { cwd: ROOT, stdio: ["ignore", "pipe", "inherit"] });
    t.after(() => child.kill("SIGKILL"));
    const [data] = await once(child.stdout, "data");
    const pid = Number(`${data}`);
    assert.ok(runs(pid));
    child.kill("SIGKILL");
    await ends(pid);
    assert.deepEqual(fs.readdirSync(tmp), []);
  });
});
