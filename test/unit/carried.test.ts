import assert from "node:assert/strict";
import { test } from "node:test";
import type { Config, DeviceCgroup, LinuxDevice, Mount } from "../../src/oci/spec.ts";
import { findCarried } from "../../src/plan/carried.ts";
import { HOSTS } from "../fixtures/hosts/hosts.ts";
import { char, dir, file, link, memory, type Tree } from "../support/memory-files.ts";

const DEVICES = `Character devices:
  1 mem
  5 /dev/tty
 10 misc
195 nvidia
195 nvidia-modeset
195 nvidiactl
226 drm
234 nvidia-caps-imex-channels
235 nvidia-caps
237 nvidia-nvswitch
239 kfd
261 accel
511 nvidia-uvm

Block devices:
  7 loop
195 odd
`;

const HOST: Tree = {
  "/proc/devices": file(DEVICES),
  "/dev/nvidia0": char(195, 0),
  "/dev/nvidiactl": char(195, 255),
  "/dev/nvidia-caps/nvidia-cap1": char(235, 1),
  "/dev/dri/card0": char(226, 0),
  "/dev/dri/renderD128": char(226, 128),
  "/dev/dri/by-path/pci-0-card": link("../card0"),
  "/dev/kfd": char(239, 0),
  "/dev/accel/accel0": char(261, 0),
  "/dev/null": char(1, 3),
  "/dev/fuse": char(10, 229),
  "/dev/kvm": char(10, 232),
  "/dev/net/tun": char(10, 200),
  "/dev/shm": dir(),
  "/dev/mine": link("/dev/nvidia0"),
  "/home/file": "text",
};

/** The numbers of what is carried, `195:*` for all of a driver's; `!` where it is privileged. */
function carried(config: Config, host: Tree = HOST): string[] {
  const { nodes, isPrivileged } = findCarried(config, memory(host));
  return [...nodes.map(({ major, minor }) => `${major}:${minor ?? "*"}`), ...(isPrivileged ? ["!"] : [])];
}

const devices = (...list: LinuxDevice[]): string[] => carried({ linux: { devices: list } });
const rules = (...list: DeviceCgroup[]): string[] => carried({ linux: { resources: { devices: list } } });
const mounted = (...sources: (string | undefined)[]): string[] =>
  carried({
    mounts: sources.map(
      (source): Mount => ({ destination: "/x", type: "bind", ...(source === undefined ? {} : { source }) }),
    ),
  });

const device = (major: number, minor: number, path = "/dev/x", type = "c"): LinuxDevice => ({
  path,
  type,
  major,
  minor,
});
const allow = (major: number, minor?: number, access = "rwm", type = "c"): DeviceCgroup => ({
  allow: true,
  type,
  major,
  access,
  ...(minor === undefined ? {} : { minor }),
});

/** What containerd writes for each container. */
const CONTAINERD_RULES: DeviceCgroup[] = [
  { allow: false, access: "rwm" },
  { allow: true, type: "c", access: "m" },
  { allow: true, type: "b", access: "m" },
  ...[3, 5, 7, 8, 9].map((minor) => allow(1, minor)),
  allow(5, 0),
  allow(5, 2),
  allow(136),
];

test("a container without devices is looked at without a look at the machine", () => {
  const sys = memory(HOST);
  for (const config of [{}, { linux: {} }, { linux: { resources: { devices: CONTAINERD_RULES } } }]) {
    assert.deepEqual(findCarried(config, sys), { nodes: [], isPrivileged: false });
  }
  assert.deepEqual(sys.calls, []);
});

test("device nodes of GPUs and of what belongs to them are found by their numbers, whatever they are called", () => {
  for (const [major, minor] of [
    [195, 0],
    [195, 255],
    [226, 0],
    [226, 128],
    [235, 1],
    [234, 0],
    [237, 0],
    [239, 0],
    [261, 0],
    [511, 0],
  ] as const) {
    assert.deepEqual(devices(device(major, minor, "/dev/null")), [`${major}:${minor}`]);
    assert.deepEqual(devices(device(major, minor, "/dev/null", "u")), [`${major}:${minor}`]);
  }
  assert.deepEqual(devices({ path: "/dev/x", type: "c", major: 195 }), ["195:0"]);
});

test("what is no GPU's never counts", () => {
  assert.deepEqual(devices(device(1, 3), device(5, 0), device(10, 229), device(10, 232), device(10, 200)), []);
  // A block device of the same number is another thing.
  assert.deepEqual(devices(device(195, 0, "/dev/x", "b"), device(195, 0, "/dev/x", "p")), []);
  assert.deepEqual(rules(allow(10, 229), allow(195, 0, "rwm", "b")), []);
});

test("without a driver, NVIDIA's and DRM's numbers count all the same", () => {
  const config = { linux: { devices: [device(195, 0), device(226, 0), device(511, 0)] } };
  assert.deepEqual(carried(config, {}), ["195:0", "226:0"]);
});

test("a cgroup rule opens a node without any being made: for one, for a driver's, for a number with every driver", () => {
  assert.deepEqual(rules(allow(195, 0)), ["195:0"]);
  assert.deepEqual(rules(allow(195)), ["195:*"]);
  assert.deepEqual(rules(allow(195, -1)), ["195:*"]);
  assert.deepEqual(rules(allow(511, 0, "r")), ["511:0"]);
  assert.deepEqual(rules(allow(195, 0, "w", "a")), ["195:0"]);
  assert.deepEqual(rules({ allow: true, major: 195, minor: 0, access: "rw" }), ["195:0"]);
  assert.deepEqual(
    new Set(rules(allow(-1, 0))),
    new Set([195, 226, 234, 235, 237, 239, 261, 511].map((m) => `${m}:0`)),
  );
});

test("a rule that opens nothing is none: denying, to make nodes only, without access", () => {
  assert.deepEqual(rules({ ...allow(195, 0), allow: false }), []);
  assert.deepEqual(rules(allow(195, 0, "m")), []);
  assert.deepEqual(rules(allow(195, 0, "")), []);
  assert.deepEqual(rules(...CONTAINERD_RULES), []);
});

test("privileged is who may open everything, or every character device, at the end", () => {
  assert.deepEqual(rules({ allow: true, access: "rwm" }), ["!"]);
  assert.deepEqual(rules({ allow: true }), ["!"]);
  assert.deepEqual(rules({ allow: true, type: "a", major: -1, minor: -1, access: "rw" }), ["!"]);
  assert.deepEqual(rules(...CONTAINERD_RULES, { allow: true, type: "c", access: "rwm" }), ["!"]);
  assert.deepEqual(rules(...CONTAINERD_RULES, { allow: true, type: "c", major: -1, minor: -1, access: "r" }), ["!"]);
  assert.deepEqual(rules({ allow: true, access: "rwm" }, { allow: false, access: "rwm" }), []);
  assert.deepEqual(rules({ allow: true, type: "b", access: "rwm" }), []);
});

test("a mount of a node is found, also by another path to it", () => {
  assert.deepEqual(mounted("/dev/nvidia0"), ["195:0"]);
  assert.deepEqual(mounted("/dev/mine"), ["195:0"]);
  for (const source of [
    "/dev//nvidia0",
    "//dev/nvidia0",
    "/dev/./nvidia0",
    "/dev/shm/../nvidia0",
    "/home/../dev/nvidia0",
    "/dev/dri/../../dev/nvidia0",
  ]) {
    assert.deepEqual(mounted(source), ["195:0"], source);
  }
});

test("a mount of a folder has the nodes in it, and links to them", () => {
  assert.deepEqual(mounted("/dev/dri"), ["226:0", "226:128"]);
  assert.deepEqual(mounted("/dev/dri/"), ["226:0", "226:128"]);
  assert.deepEqual(mounted("/dev/dri/by-path"), ["226:0"]);
  assert.deepEqual(mounted("/dev/nvidia-caps", "/dev/accel"), ["235:1", "261:0"]);
});

test("all of /dev is no request for a GPU, nor is what every container has of it", () => {
  const none = ["/dev", "/dev/", "/dev/.", "/", "/dev/shm", "/dev/shm/x", "/dev/pts", "/dev/mqueue", "/dev/hugepages"];
  assert.deepEqual(mounted(...none, undefined, "", "proc", "devpts", "/home/file", "/nowhere"), []);
  assert.deepEqual(mounted("/dev/null", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/nothing"), []);
});

test("what is carried is told with where it is", () => {
  const config: Config = {
    linux: {
      devices: [device(195, 0, "/dev/\u001b[2J")],
      resources: { devices: [allow(226), allow(195, 255, "rw")] },
    },
    mounts: [
      { destination: "/x", source: "/dev/kfd" },
      { destination: "/y", source: "/dev/accel" },
    ],
  };
  assert.deepEqual(
    findCarried(config, memory(HOST)).nodes.map(({ what }) => what),
    [
      'device node "/dev/\\u001b[2J" (c 195:0)',
      'device cgroup rule "c 226:* rwm"',
      'device cgroup rule "c 195:255 rw"',
      'mount of "/dev/kfd" (c 239:0)',
      'mount of "/dev/accel", which has "/dev/accel/accel0" (c 261:0)',
    ],
  );
});

test("values that an engine would not write do no harm", () => {
  const odd = JSON.parse(`{"linux": {"devices": [
      {"path": "/dev/a"}, {"path": "/dev/b", "type": null, "major": 195}, {"path": "/dev/c", "type": "c"},
      {"path": "/dev/d", "type": "c", "major": -195, "minor": 0}, {"path": "/dev/e", "type": "c", "major": 195.5},
      {"path": "/dev/f", "type": "c", "major": 195, "minor": null}, {"path": "/dev/g", "type": "c", "major": 1e300}],
    "resources": {"devices": [{}, {"allow": null}, {"allow": true, "type": "", "major": 195, "minor": null},
      {"allow": true, "type": "c", "major": 195, "minor": -7, "access": null}, {"allow": true, "type": "x", "major": 195}]}},
    "mounts": [{"destination": "/x", "source": null}, {"destination": "/x"}]}`);
  assert.deepEqual(carried(odd), ["195:0", "195:*", "195:*"]);
  assert.deepEqual(carried({ linux: null, mounts: null } as unknown as Config), []);
});

test("huge lists are looked at in time", () => {
  const many = Array.from({ length: 20_000 }, (_, i) => i);
  const config: Config = {
    linux: {
      devices: many.map((i) => device(195, i)),
      resources: { devices: many.map((i) => allow(195, i)) },
    },
    mounts: many.map((i) => ({ destination: "/x", source: `/dev/${"../dev/".repeat(i % 20)}nvidia0` })),
  };
  assert.equal(carried(config).length, 40_020);
});

test("a node that cannot be looked at, and a folder that cannot be listed, carry nothing", () => {
  const sys = memory(HOST);
  sys.fail("stat", "/dev/nvidia0", "EACCES");
  sys.fail("list", "/dev/dri", "EIO");
  const mounts = ["/dev/nvidia0", "/dev/dri", "/dev/kfd"].map((source) => ({ destination: "/x", source }));
  assert.deepEqual(
    findCarried({ mounts }, sys).nodes.map(({ major }) => major),
    [239],
  );
});

test("on real machines' numbers, a container of each GPU's nodes carries them", () => {
  for (const name of ["h100x8", "a100-mig-2", "mi300", "arc"] as const) {
    const sys = memory(HOSTS[name]().tree);
    const folders = ["/dev", "/dev/dri", "/dev/nvidia-caps"].flatMap((folder) =>
      (sys.list(folder) ?? []).filter(({ kind }) => kind === "char").map((entry) => `${folder}/${entry.name}`),
    );
    const gpus = folders.filter((path) => /^\/dev\/(?:nvidia|dri\/|kfd)/.test(path));
    assert.ok(gpus.length > 3, name);
    const found = findCarried({ mounts: folders.map((source) => ({ destination: "/x", source })) }, sys);
    assert.deepEqual(
      found.nodes.map(({ what }) => /"(.*?)"/.exec(what)?.[1]),
      gpus.length === folders.length ? folders : folders.filter((path) => gpus.includes(path)),
      name,
    );
  }
});
