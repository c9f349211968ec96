import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { Spec } from "../../src/cdi/spec.ts";
import { applyPlan } from "../../src/plan/inject.ts";
import type { Plan } from "../../src/plan/plan.ts";
import type { Receipt } from "../../src/plan/receipt.ts";
import { type BundleConfig, containers, lines, opens, ROOTFS, refused } from "./containers.ts";
import { boot, needsVm, type Output, type Vm } from "./vm.ts";

const RUNTIMES = ["runc", "runc-1.1", "crun"] as const;

/**
 * Virtual terminals stand in for GPUs: nodes of one driver that differ in the minor number, as NVIDIA's do, can be
 * opened by several at once, and no runtime allows them by itself.
 */
const NODES = { "/dev/nvidiactl": 60, "/dev/nvidia0": 50, "/dev/nvidia1": 51 };

const SPEC: Spec = {
  cdiVersion: "0.5.0",
  kind: "nvidia.com/gpu",
  devices: [
    { name: "0", containerEdits: { deviceNodes: [{ path: "/dev/nvidia0" }] } },
    { name: "1", containerEdits: { deviceNodes: [{ path: "/dev/nvidia1" }] } },
    { name: "readable", containerEdits: { deviceNodes: [{ path: "/dev/nvidia0", permissions: "r" }] } },
  ],
  containerEdits: {
    env: ["NVIDIA_VISIBLE_DEVICES=void"],
    deviceNodes: [{ path: "/dev/nvidiactl" }],
    mounts: [{ hostPath: "/srv/driver", containerPath: "/usr/share/driver", options: ["ro", "rbind"] }],
  },
};

const ask = (device: string) => ({ "gpu.sluice.dev": `nvidia.com/gpu=${device}` });
const receiptOf = (id: string) => `/run/sluice/receipts/${id}.json`;
/** A script that prints what is left of a container. */
const remains = (id: string) => `ls ${receiptOf(id)} 2>/dev/null || true; find /sys/fs/cgroup -name ${id}`;

describe("the runtime door on cgroup v2", needsVm(), () => {
  let vm: Vm;
  let bundle: Awaited<ReturnType<typeof containers>>;

  before(async () => {
    vm = await boot();
    bundle = await containers(vm);
    await vm.write("/etc/cdi/nvidia.json", JSON.stringify(SPEC));
    await vm.write("/srv/driver", "driver\n");
    for (const runtime of RUNTIMES) {
      await vm.write(`/etc/sluice/${runtime}.toml`, `[runtime]\nruntimes = ["/usr/bin/${runtime}"]\n`);
    }
    const nodes = Object.entries(NODES).map(([path, minor]) => `mknod -m 666 ${path} c 4 ${minor}`);
    await vm.sh([...nodes, `mknod -m 666 ${ROOTFS}/stray/nvidia1 c 4 ${NODES["/dev/nvidia1"]}`].join("\n"));
  });
  after(() => vm.close());

  /** Sluice as the engine calls it, with this low-level runtime beneath. */
  const sluice = (runtime: string, args: string): Promise<Output> =>
    vm.run(`SLUICE_CONFIG=/etc/sluice/${runtime}.toml exec sluice-runtime ${args}`);

  async function runs(runtime: string, dir: string, id: string): Promise<string[]> {
    const { code, out, err } = await sluice(runtime, `run --bundle ${dir} ${id}`);
    assert.deepEqual([code, err], [0, ""], out);
    return lines(out);
  }

  test("the VM has the v2 hierarchy alone, with its controllers", async () => {
    assert.equal(await vm.sh("cat /proc/self/cgroup"), "0::/\n");
    assert.match(await vm.sh("cat /sys/fs/cgroup/cgroup.controllers"), /\bcpu\b.*\bmemory\b.*\bpids\b/);
    assert.equal(await vm.sh("grep -c cgroup /proc/mounts"), "1\n");
  });

  for (const runtime of RUNTIMES) {
    describe(`with ${runtime} beneath`, () => {
      test("a container opens the GPU it was granted, and no other, even by a node that it makes", async () => {
        const script = `${opens("/dev/nvidia0", "/dev/nvidiactl")}
          mknod -m 666 /dev/made c 4 ${NODES["/dev/nvidia1"]} && ${opens("/dev/made", "/stray/nvidia1")}
          ls /dev/nvidia*; cat /usr/share/driver; echo visible=$NVIDIA_VISIBLE_DEVICES`;
        const change = ({ process }: BundleConfig): void => {
          for (const list of Object.values(process.capabilities)) list.push("CAP_MKNOD");
        };
        const dir = await bundle(`${runtime}-open`, { script, annotations: ask("0"), change });
        assert.deepEqual(await runs(runtime, dir, "open"), [
          "/dev/nvidia0 opens",
          "/dev/nvidiactl opens",
          refused("/dev/made"),
          refused("/stray/nvidia1"),
          "/dev/nvidia0",
          "/dev/nvidiactl",
          "driver",
          "visible=void",
        ]);
        // It was the grant that made the difference.
        const other = await bundle(`${runtime}-other`, { script: opens("/stray/nvidia1"), annotations: ask("1") });
        assert.deepEqual(await runs(runtime, other, "other"), ["/stray/nvidia1 opens"]);
      });

      test("what `sluice plan --json` says is what the container then gets", async () => {
        const dir = await bundle(`${runtime}-plan`, { script: "true", annotations: ask("0") });
        const before = JSON.parse(`${await vm.read(`${dir}/config.json`)}`) as BundleConfig;
        const plan = JSON.parse(await vm.sh(`sluice plan --bundle ${dir} --json`)) as Plan;
        assert.equal((await sluice(runtime, `create --bundle ${dir} plan >/dev/null 2>&1`)).code, 0);
        const after = JSON.parse(`${await vm.read(`${dir}/config.json`)}`) as BundleConfig;
        assert.deepEqual(after, applyPlan(before, plan));
        assert.deepEqual(
          after.linux.devices?.map(({ path, type, major, minor }) => [path, type, major, minor]),
          [
            ["/dev/nvidiactl", "c", 4, 60],
            ["/dev/nvidia0", "c", 4, 50],
          ],
        );
        const receipt = JSON.parse(`${await vm.read(receiptOf("plan"))}`) as Receipt;
        assert.deepEqual([receipt.digest, receipt.edits], [plan.digest, plan.edits]);
        assert.equal((await sluice(runtime, "delete --force plan")).code, 0);
      });

      test("a container that asks for nothing keeps its config.json and is what the runtime alone makes", async () => {
        const script = "ls -R /dev; cat /proc/self/mounts /proc/self/cgroup; env; grep Cap /proc/self/status";
        const dir = await bundle(`${runtime}-nothing`, { script });
        const look = `stat -c '%i %Y %Z %s' ${dir}/config.json; sha256sum ${dir}/config.json`;
        const before = await vm.sh(look);
        const alone = await vm.run(`${runtime} run --bundle ${dir} nothing`);
        assert.equal(alone.code, 0);
        assert.deepEqual(await sluice(runtime, `run --bundle ${dir} nothing`), alone);
        assert.equal(await vm.sh(look), before);
        assert.equal(await vm.sh(remains("nothing")), "");
      });

      test("delete releases the receipt and leaves no cgroup", async () => {
        const dir = await bundle(`${runtime}-delete`, { script: "sleep 600", annotations: ask("0") });
        assert.equal((await sluice(runtime, `create --bundle ${dir} deleted >/dev/null 2>&1`)).code, 0);
        assert.equal((await sluice(runtime, "start deleted")).code, 0);
        assert.deepEqual(lines(await vm.sh(remains("deleted"))), [receiptOf("deleted"), "/sys/fs/cgroup/deleted"]);
        assert.equal((await sluice(runtime, "delete --force deleted")).code, 0);
        assert.equal(await vm.sh(remains("deleted")), "");
      });

      // It copies itself into memory for each container, which takes two seconds here; the rest, the newer one shows.
      if (runtime === "runc-1.1") return;

      test("a node that was granted for reading cannot be written to", async () => {
        const script = `(exec 3</dev/nvidia0) && echo reads; ${opens("/dev/nvidia0")}`;
        const dir = await bundle(`${runtime}-readable`, { script, annotations: ask("readable") });
        assert.deepEqual(await runs(runtime, dir, "readable"), ["reads", refused("/dev/nvidia0")]);
      });

      test("in a user namespace the device is there, and another GPU's is refused", async () => {
        const script = `cat /proc/self/uid_map; ${opens("/dev/nvidia0", "/stray/nvidia1")}`;
        const change = ({ linux }: BundleConfig): void => {
          linux.namespaces.push({ type: "user" });
          linux.uidMappings = [{ containerID: 0, hostID: 100_000, size: 65_536 }];
          linux.gidMappings = [{ containerID: 0, hostID: 100_000, size: 65_536 }];
        };
        const dir = await bundle(`${runtime}-userns`, { script, annotations: ask("0"), change });
        const [map, ...rest] = await runs(runtime, dir, "userns");
        assert.deepEqual(map?.trim().split(/ +/), ["0", "100000", "65536"]);
        assert.deepEqual(rest, ["/dev/nvidia0 opens", refused("/stray/nvidia1")]);
      });

      test("in a read-only root the device and the files are there", async () => {
        const script = `(echo >/tmp/x) 2>/dev/null || echo read-only; ${opens("/dev/nvidia0")}; cat /usr/share/driver`;
        const change = ({ root }: BundleConfig): void => {
          root.readonly = true;
        };
        const dir = await bundle(`${runtime}-read-only`, { script, annotations: ask("0"), change });
        assert.deepEqual(await runs(runtime, dir, "read-only"), ["read-only", "/dev/nvidia0 opens", "driver"]);
      });

      test("a container with all devices keeps all, and gets none twice", async () => {
        const change = ({ linux }: BundleConfig): void => {
          linux.resources = { devices: [{ allow: true, access: "rwm" }] };
          linux.devices = Object.entries(NODES).map(([path, minor]) => ({ path, type: "c", major: 4, minor }));
        };
        const script = opens("/dev/nvidia0", "/dev/nvidia1", "/stray/nvidia1");
        const dir = await bundle(`${runtime}-all`, { script, annotations: ask("0"), change });
        assert.deepEqual(await runs(runtime, dir, "all"), [
          "/dev/nvidia0 opens",
          "/dev/nvidia1 opens",
          "/stray/nvidia1 opens",
        ]);
        const { linux } = JSON.parse(`${await vm.read(`${dir}/config.json`)}`) as BundleConfig;
        assert.deepEqual(linux.devices?.map(({ path }) => path).sort(), Object.keys(NODES).sort());
      });

      test("a kill in the middle of create leaves a whole config.json, and the container can be created anew", async () => {
        const annotations = ask("0");
        const dir = await bundle(`${runtime}-kill`, { script: opens("/dev/nvidia0", "/stray/nvidia1"), annotations });
        await vm.sh(`cp ${dir}/config.json /srv/asked.json`);
        const create = `SLUICE_CONFIG=/etc/sluice/${runtime}.toml sluice-runtime create --bundle ${dir}`;
        // One that nobody disturbs shows the config.json as it shall be, and how long it takes.
        const took = Number(
          await vm.sh(`begun=$(cut -d ' ' -f 1 /proc/uptime); ${create} whole >/dev/null 2>&1
            cut -d ' ' -f 1 /proc/uptime | awk -v begun=$begun '{ printf "%d", ($1 - begun) * 1e6 }'
            cp ${dir}/config.json /srv/whole.json; sluice-runtime delete --force whole`),
        );
        const states = new Set(await vm.sh("cat /srv/asked.json; echo; cat /srv/whole.json; echo").then(lines));
        assert.equal(states.size, 2);
        for (const part of [0.02, 0.1, 0.5]) {
          await vm.sh(`cp /srv/asked.json ${dir}/config.json
            ${create} killed >/dev/null 2>&1 & pid=$!; usleep ${Math.round(took * part)}
            kill -9 $pid || true; wait $pid || true`);
          assert.ok(states.has(`${await vm.read(`${dir}/config.json`)}`), `killed after ${part} of a create`);
          // What the low-level runtime had made by then is its own to clear away, when the engine has it deleted.
          await sluice(runtime, "delete --force killed");
          assert.equal(await vm.sh(`find ${receiptOf("killed")} 2>/dev/null || true`), "", `killed after ${part}`);
        }
        assert.deepEqual(await runs(runtime, dir, "anew"), ["/dev/nvidia0 opens", refused("/stray/nvidia1")]);
      });
    });
  }

  test("each of 20 containers that start at once gets its own GPU only", async () => {
    const script = opens("/dev/nvidia0", "/dev/nvidia1", "/stray/nvidia1");
    for (const gpu of ["0", "1"]) await bundle(`many-${gpu}`, { script, annotations: ask(gpu) });
    await vm.sh(`
      mkdir /srv/many; cd /srv/many
      for i in $(seq 20); do
        cp -r /srv/bundles/many-$((i % 2)) $i
        (sluice-runtime run --bundle $i many-$i >$i/out 2>&1; echo "exit status $?" >>$i/out) &
      done
      wait
    `);
    const own = (gpu: number) => [
      gpu === 0 ? "/dev/nvidia0 opens" : "/dev/nvidia0 is not there",
      gpu === 1 ? "/dev/nvidia1 opens" : "/dev/nvidia1 is not there",
      gpu === 1 ? "/stray/nvidia1 opens" : refused("/stray/nvidia1"),
      "exit status 0",
    ];
    const all = lines(await vm.sh("cd /srv/many; for i in $(seq 20); do cat $i/out; done"));
    assert.deepEqual(all, Array.from({ length: 20 }, (_, i) => own((i + 1) % 2)).flat());
    assert.equal(await vm.sh("find /run/sluice/receipts /sys/fs/cgroup -name 'many-*'"), "");
  });
});
