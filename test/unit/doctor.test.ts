import assert from "node:assert/strict";
import { test } from "node:test";
import { examine } from "../../src/cli/doctor.part.ts";
import type { Finding } from "../../src/cli/doctor-checks.ts";
import { makeSpecs } from "../../src/host/cdi-spec.ts";
import { compareVersions, matches, readEngines } from "../../src/host/engines.part.ts";
import { publish } from "../../src/host/publish.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { Receipts } from "../../src/plan/receipt.ts";
import { hostile } from "../fixtures/hosts/hostile.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import {
  char,
  dir,
  fifo,
  file,
  link,
  type MemorySys,
  memory,
  type NodeSpec,
  type Tree,
} from "../support/memory-files.ts";

type Changes = Readonly<Record<string, string | NodeSpec | undefined>>;

/** A fixture as this very machine, with runc on it, and with things put (or, undefined, removed). */
function machine(name: HostName, changes: Changes = {}): MemorySys {
  const tree: Tree = { "/run/sluice": dir(), "/usr/bin/runc": file("", { mode: 0o755 }), ...HOSTS[name]().tree };
  const sys = memory(tree);
  for (const [path, node] of Object.entries(changes)) {
    if (node === undefined) sys.remove(path);
    else sys.put(path, node);
  }
  return sys;
}

function findings(sys: MemorySys, engine?: "docker" | "containerd" | "crio" | "podman"): Finding[] {
  const isGood = examine(sys, { json: true, ...(engine === undefined ? {} : { engine }) }, () => openMachine(sys));
  const found = JSON.parse(sys.output).findings as Finding[];
  sys.output = "";
  assert.equal(isGood, !found.some(({ severity }) => severity === "error"));
  return found;
}

/** `error gpu-lost`, in the order in which they are told. */
function codes(sys: MemorySys): string[] {
  return findings(sys).map(({ severity, code }) => `${severity} ${code}`);
}

/** The one finding of a code. */
function only(sys: MemorySys, code: string): Finding {
  const found = findings(sys).filter((finding) => finding.code === code);
  assert.equal(found.length, 1, code);
  return found[0] as Finding;
}

function has(sys: MemorySys, code: string): boolean {
  return findings(sys).some((finding) => finding.code === code);
}

function spec(kind: string, edits: object, name = "0", cdiVersion = "0.6.0"): string {
  return JSON.stringify({ cdiVersion, kind, devices: [{ name, containerEdits: edits }] });
}

const ANY = { env: ["A=b"] };

test("each fixture host gives what is wrong with it, and nothing else", () => {
  const usual = ["warning dev-char-link-missing", "warning no-spec"];
  const expected: Readonly<Record<HostName, readonly string[]>> = {
    h100x8: ["warning no-spec"],
    "a100-mig-2": usual,
    "a100-mig-2-half": ["warning mig-node-missing", ...usual],
    "a100-mig-2-compute": usual,
    "a100-mig-2-uncut": usual,
    "fresh-boot": [
      "error uvm-not-loaded",
      "warning gpu-node-missing",
      "warning control-node-missing",
      "warning no-spec",
      "note no-persistence-daemon",
    ],
    "lost-gpu": ["error gpu-lost", ...usual],
    "lost-gpu-removed": usual,
    "half-upgraded": ["error driver-half-upgraded", ...usual],
    "no-driver": ["error no-driver"],
    debian: usual,
    rhel: [...usual, "note selinux-devices"],
    suse: [...usual, "note no-persistence-daemon"],
    nixos: [...usual, "note no-persistence-daemon"],
    wsl: ["warning unsupported-platform"],
    tegra: ["warning unsupported-platform"],
    "l40s-vgpu": [...usual, "note no-persistence-daemon"],
    "a100-mdev": [...usual, "note no-persistence-daemon"],
    gvtg: ["warning no-spec"],
    mi300: ["warning no-spec"],
    "mi300-spx": ["warning no-spec"],
    "mi300-dpx": ["warning no-spec"],
    arc: ["warning no-spec"],
    flex: ["warning no-spec"],
    empty: ["note no-gpu"],
  };
  for (const name of Object.keys(HOSTS) as HostName[])
    assert.deepEqual(codes(machine(name)), [...expected[name]], name);
});

test("every finding says what, why and how to put it right, and each code is of one form", () => {
  for (const name of Object.keys(HOSTS) as HostName[]) {
    for (const finding of findings(machine(name))) {
      assert.match(finding.code, /^[a-z0-9]+(?:-[a-z0-9]+)+$/);
      for (const text of [finding.what, finding.why, finding.fix])
        assert.ok(text.length > 8 && !text.endsWith("."), text);
    }
  }
});

test("a lost GPU is named, by its index and address", () => {
  assert.match(only(machine("lost-gpu"), "gpu-lost").what, /^GPU 2 \(0000:ca:00\.0, NVIDIA L4\)/);
});

test("nodes that are missing or renumbered come with the command that makes them right", () => {
  const node = only(machine("fresh-boot"), "gpu-node-missing");
  assert.equal(node.fix, "mknod -m 666 /dev/nvidia0 c 195 0\nmknod -m 666 /dev/nvidia1 c 195 1");

  const strange = machine("lost-gpu-removed", { "/dev/nvidia1": char(195, 7) });
  assert.equal(only(strange, "gpu-node-missing").fix, "rm /dev/nvidia1 && mknod -m 666 /dev/nvidia1 c 195 1");

  const uvm = machine("debian", { "/dev/nvidia-uvm": char(99, 0), "/dev/nvidia-modeset": undefined });
  const wrong = only(uvm, "node-renumbered");
  assert.match(wrong.what, /^\/dev\/nvidia-uvm is 99:0, not \d+:0$/);
  assert.match(wrong.fix, /^rm \/dev\/nvidia-uvm && mknod -m 666 \/dev\/nvidia-uvm c \d+ 0$/);
  const control = only(uvm, "control-node-missing");
  assert.match(control.what, /^\/dev\/nvidia-modeset \(for graphics\) is missing$/);
  assert.equal(control.fix, "mknod -m 666 /dev/nvidia-modeset c 195 254");

  const mig = only(machine("a100-mig-2-half"), "mig-node-missing");
  assert.match(mig.fix, /^mkdir -p \/dev\/nvidia-caps && mknod -m 444 \/dev\/nvidia-caps\/nvidia-cap147 c \d+ 147\n/);
});

test("nodes get the mode and the owner that the driver is set to", () => {
  const params = "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n";
  const sys = machine("fresh-boot", { "/proc/driver/nvidia/params": params });
  const [first] = only(sys, "gpu-node-missing").fix.split("\n");
  assert.equal(first, "mknod -m 660 /dev/nvidia0 c 195 0 && chown 0:44 /dev/nvidia0");
});

test("without its libraries, the loaded driver does nothing for a container", () => {
  const sys = machine("rhel");
  for (const name of sys.names("/usr/lib64").filter((one) => one.startsWith("libcuda.so.")))
    sys.remove(`/usr/lib64/${name}`);
  assert.match(only(sys, "driver-files-missing").fix, /^install the libraries of 580\.65\.06 /);
  // The host of vGPUs has none by design.
  assert.ok(!has(machine("l40s-vgpu"), "driver-files-missing"));
});

test("libraries of a second driver are told while those of the loaded one are whole", () => {
  const sys = machine("rhel", { "/usr/lib64/libcuda.so.570.10": "x" });
  assert.match(only(sys, "driver-other-versions").what, /580\.65\.06 lie those of 570\.10$/);
});

test("a GPU that another driver has is told with the driver's name", () => {
  const sys = machine("no-driver");
  sys.put("/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/driver", link("../../../../bus/pci/drivers/nouveau"));
  const { what, severity } = only(sys, "no-driver");
  assert.match(what, /0000:01:00\.0: the driver nouveau has it$/);
  assert.equal(severity, "error");
});

test("switches without their manager, AMD without its compute driver, DRM nodes that are gone", () => {
  assert.ok(has(machine("h100x8", { "/run/nvidia-fabricmanager/socket": undefined }), "no-fabric-manager"));
  assert.ok(has(machine("mi300", { "/dev/kfd": undefined }), "kfd-missing"));
  assert.match(only(machine("arc", { "/dev/dri/renderD128": undefined }), "drm-node-missing").what, /renderD128/);
});

test("links in /dev/char are asked for as plain commands, and only where the machine has that folder", () => {
  const { fix } = only(machine("debian"), "dev-char-link-missing");
  assert.match(fix, /^ln -s \.\.\/nvidia0 \/dev\/char\/195:0$/m);
  assert.match(fix, /^ln -s \.\.\/nvidiactl \/dev\/char\/195:255$/m);
  const sys = machine("debian");
  for (const line of fix.split("\n")) {
    const [, , target = "", path = ""] = line.split(" ");
    sys.put(path, link(target));
  }
  assert.ok(!has(sys, "dev-char-link-missing"));
  assert.ok(!has(machine("debian", { "/dev/char": undefined }), "dev-char-link-missing"));
});

test("two specs of one folder with the same device are one finding, and a hidden one is a note", () => {
  const sys = machine("rhel", {
    "/etc/cdi/nvidia.json": spec("nvidia.com/gpu", ANY),
    "/etc/cdi/other.json": spec("nvidia.com/gpu", ANY),
  });
  const conflict = only(sys, "spec-conflict");
  assert.equal(conflict.what, "/etc/cdi/nvidia.json and /etc/cdi/other.json both define nvidia.com/gpu=0");
  assert.match(conflict.fix, /rm \/etc\/cdi\/nvidia\.json, or rm \/etc\/cdi\/other\.json$/);

  const hidden = machine("rhel", {
    "/etc/cdi/nvidia.json": spec("nvidia.com/gpu", ANY),
    "/var/run/cdi/nvidia.json": spec("nvidia.com/gpu", ANY),
  });
  assert.match(only(hidden, "spec-shadowed").what, /^\/etc\/cdi\/nvidia\.json defines nvidia\.com\/gpu=0, and/);
});

test("spec files that cannot be used are told with the first problem of each", () => {
  const sys = machine("rhel", {
    "/etc/cdi/broken.json": "{",
    "/etc/cdi/wrong.json": '{"cdiVersion":"0.6.0","kind":"nvidia","devices":[]}',
    "/etc/cdi/open.json": file(spec("a.com/b", ANY), { mode: 0o666 }),
    "/etc/cdi/pipe.json": fifo(),
    "/etc/cdi/it's here.json": "[]",
  });
  const found = findings(sys).filter(({ code }) => code.startsWith("spec-"));
  assert.deepEqual(found.map(({ code }) => code).sort(), [
    "spec-broken",
    "spec-broken",
    "spec-broken",
    "spec-unreadable",
    "spec-untrusted",
  ]);
  assert.match(
    found.find(({ what }) => what.includes("here.json"))?.fix ?? "",
    /validate '\/etc\/cdi\/it'\\''s here\.json'/,
  );
  assert.match(found.find(({ code }) => code === "spec-untrusted")?.fix ?? "", /chmod o-w \/etc\/cdi\/open\.json/);
});

test("a spec that names what is gone, or other numbers than a node has, is told with the tool that makes it anew", () => {
  const edits = {
    mounts: [
      { hostPath: "/usr/lib64/libcuda.so.570.1", containerPath: "/x" },
      { hostPath: "/usr/lib64", containerPath: "/y" },
    ],
    hooks: [{ hookName: "createContainer", path: "/usr/bin/nvidia-cdi-hook" }],
    deviceNodes: [
      { path: "/dev/nvidia0", major: 195, minor: 3, type: "c" },
      { path: "/dev/nvidiactl" },
      { path: "/dev/nvidia9", major: 195, minor: 9, type: "c" },
    ],
  };
  const sys = machine("rhel", { "/etc/cdi/nvidia.json": spec("nvidia.com/gpu", edits) });
  const missing = only(sys, "spec-names-missing");
  assert.match(
    missing.what,
    /^\/etc\/cdi\/nvidia\.json names what is not there: \/usr\/lib64\/libcuda\.so\.570\.1, \/usr\/bin\/nvidia-cdi-hook$/,
  );
  assert.match(missing.fix, /^nvidia-ctk cdi generate --output=\/etc\/cdi\/nvidia\.json /);
  assert.match(only(sys, "spec-renumbered").what, /other device numbers than those of \/dev\/nvidia0$/);
});

test("a spec of Sluice's own that has gone stale is told with what has changed", () => {
  const sys = machine("lost-gpu-removed", { "/var/run/cdi": dir() });
  publish(sys, "/var/run/cdi", makeSpecs(sys, { hook: "", params: "", features: [] }), false);
  assert.deepEqual(codes(sys), ["warning dev-char-link-missing"]);
  sys.put("/sys/module/nvidia/version", "590.44.01\n");
  const { what, fix } = only(sys, "spec-stale");
  assert.match(
    what,
    /^\/var\/run\/cdi\/sluice-nvidia\.com-gpu\.json is no longer right: driver 580\.65\.06 -> 590\.44\.01/,
  );
  assert.equal(fix, "sluice cdi generate");
});

const DOCKER = { "/usr/bin/dockerd": file("", { mode: 0o755 }) };
const CONTAINERD = { "/usr/bin/containerd": file("", { mode: 0o755 }) };

function withVersion(sys: MemorySys, program: string, out: string, code = 0): MemorySys {
  sys.answers.set(`/usr/bin/${program} --version`, { code, out });
  return sys;
}

test("an engine's version is what it prints, and its CDI that of its library", () => {
  const cases: readonly (readonly [program: string, out: string, version: string, newest: string | undefined])[] = [
    ["dockerd", "Docker version 28.5.2+dfsg4, build 3ef3c07c883be49a2e8097bcf6d2952fce1d70eb\n", "28.5.2", "1.0.0"],
    ["dockerd", "Docker version 26.1.5+dfsg1, build 411e817\n", "26.1.5", "0.7.0"],
    ["dockerd", "Docker version 24.0.7, build 311b9ff\n", "24.0.7", undefined],
    ["dockerd", "Docker version 25.0.16, build 1\n", "25.0.16", "0.6.0"],
    ["dockerd", "Docker version 30.1.0-rc.1, build 1\n", "30.1.0", "1.1.0"],
    ["containerd", "containerd github.com/containerd/containerd/v2 2.1.9+unknown \n", "2.1.9", "1.0.0"],
    ["containerd", "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1\n", "1.7.24", "0.7.0"],
    ["containerd", "containerd containerd.io v2.2.1 dea7da592f5d1d2b7755e3a161be07f43fad8f75\n", "2.2.1", "1.1.0"],
    ["podman", "podman version 5.8.6\n", "5.8.6", "1.0.0"],
    ["podman", "podman version 4.0.2\n", "4.0.2", "0.2.0"],
    ["crio", "crio version 1.34.1\nVersion:        1.34.1\n", "1.34.1", "1.0.0"],
  ];
  for (const [program, out, version, newest] of cases) {
    const files = memory({ [`/usr/bin/${program}`]: file("", { mode: 0o755 }) });
    const [engine] = readEngines(files, () => out);
    assert.deepEqual([engine?.version, engine?.newestCdi], [version, newest], out);
  }
  assert.ok(compareVersions("1.7.9", "1.7.10") < 0 && compareVersions("2.0", "2.0.0") === 0);
});

test("an engine that does not tell its version, or is another tree's, is not judged by it", () => {
  const sys = withVersion(machine("rhel", DOCKER), "dockerd", "", 1);
  assert.equal(only(sys, "engine-version-unknown").fix, "/usr/bin/dockerd --version   # why");
  assert.equal(readEngines(memory(DOCKER))[0]?.cdi, undefined);
  assert.deepEqual(readEngines(memory({ "/usr/bin/podman": file("no program") })), []);
});

test("whether an engine does CDI by itself is told by its version and its settings", () => {
  const docker = (version: string, settings?: string): string | undefined =>
    readEngines(
      memory({ ...DOCKER, ...(settings === undefined ? {} : { "/etc/docker/daemon.json": settings }) }),
      () => `Docker version ${version}, build 1`,
    )[0]?.cdi;
  assert.equal(docker("24.0.9"), "none");
  assert.equal(docker("28.1.1"), "off");
  assert.equal(docker("28.1.1", '{"features": {"cdi": true}}'), "on");
  assert.equal(docker("28.2.0"), "on");
  assert.equal(docker("28.2.0", '{"features": {"cdi": false}}'), "off");
  assert.equal(docker("28.2.0", '{"cdi-spec-dirs": [""]}'), "off");

  const containerd = (version: string, tree: Tree = {}): string | undefined =>
    readEngines(memory({ ...CONTAINERD, ...tree }), () => `containerd x v${version} y`)[0]?.cdi;
  const on = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nenable_cdi = true\n";
  assert.equal(containerd("1.6.36"), "none");
  assert.equal(containerd("1.7.28"), "off");
  assert.equal(containerd("1.7.28", { "/etc/containerd/config.toml": on }), "on");
  assert.equal(containerd("2.1.4"), "on");
  assert.equal(containerd("2.1.4", { "/etc/containerd/config.toml": on.replace("true", "false") }), "off");
  // What is imported comes later, and counts.
  const main = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n";
  assert.equal(
    containerd("1.7.28", { "/etc/containerd/config.toml": main, "/etc/containerd/conf.d/99-x.toml": on }),
    "on",
  );
  assert.equal(
    containerd("1.7.28", { "/etc/containerd/config.toml": main, "/etc/containerd/conf.d/99-x.txt": on }),
    "off",
  );
});

test("an engine without CDI is told with what to set where", () => {
  const docker = withVersion(machine("rhel", DOCKER), "dockerd", "Docker version 26.1.5+dfsg1, build 1");
  assert.match(only(docker, "engine-cdi-off").fix, /"features": \{"cdi": true\}.*systemctl restart docker$/);
  const containerd = withVersion(machine("rhel", CONTAINERD), "containerd", "containerd x 1.7.24 y");
  assert.match(only(containerd, "engine-cdi-off").fix, /io\.containerd\.grpc\.v1\.cri'\], set enable_cdi = true/);
});

test("a spec that an engine is too old for is told with the version that it could have, or the engine's remedy", () => {
  const sys = machine("rhel", {
    ...DOCKER,
    "/etc/cdi/light.json": spec("nvidia.com/gpu", ANY, "gpu0", "1.1.0"),
    "/etc/cdi/heavy.json": spec("a.com/b", { netDevices: [{ hostInterfaceName: "a", name: "b" }] }, "x", "1.1.0"),
    "/etc/cdi/good.json": spec("c.com/d", ANY, "x", "1.0.0"),
  });
  withVersion(sys, "dockerd", "Docker version 28.5.2, build 1");
  const found = findings(sys).filter(({ code }) => code === "spec-too-new");
  assert.deepEqual(
    found.map(({ what }) => what),
    [
      "/etc/cdi/heavy.json is of CDI 1.1.0, and Docker 28.5.2 takes 1.0.0 at most",
      "/etc/cdi/light.json is of CDI 1.1.0, and Docker 28.5.2 takes 1.0.0 at most",
    ],
  );
  assert.equal(found[0]?.fix, "install a newer Docker: the field netDevices needs CDI 1.1.0");
  assert.match(found[1]?.fix ?? "", /cdiVersion 0\.3\.0$/);
});

test("folders of specs that an engine does not look into are told, under both names of /run", () => {
  const sys = machine("rhel", {
    ...DOCKER,
    "/etc/docker/daemon.json": '{"cdi-spec-dirs": ["/run/cdi/"]}',
    "/etc/cdi/x.json": spec("a.com/b", ANY),
    "/var/run/cdi/y.json": spec("c.com/d", ANY),
  });
  withVersion(sys, "dockerd", "Docker version 28.5.2, build 1");
  assert.match(
    only(sys, "engine-spec-dirs").what,
    /^Docker looks for CDI specs in \/run\/cdi\/ only, .* in \/etc\/cdi$/,
  );
});

test("settings of an engine that cannot be read are a finding", () => {
  const sys = machine("rhel", { ...CONTAINERD, "/etc/containerd/config.toml": "version = \n" });
  withVersion(sys, "containerd", "containerd x 2.1.9 y");
  assert.match(
    only(sys, "engine-settings-broken").what,
    /^the settings of containerd, \/etc\/containerd\/config\.toml: /,
  );
  const dated = machine("rhel", { ...CONTAINERD, "/etc/containerd/config.toml": "a = 1979-05-27T07:32:00Z\n" });
  withVersion(dated, "containerd", "containerd x 2.1.9 y");
  findings(dated);
});

test("settings of another shape than an engine's are as good as none", () => {
  for (const text of [
    "null",
    "[]",
    "7",
    '{"features": 1, "cdi-spec-dirs": {"a": 1}, "runtimes": [1, {"path": 2}]}',
    '{"runtimes": {"x": null}}',
  ]) {
    const [engine] = readEngines(memory({ ...DOCKER, "/etc/docker/daemon.json": text }), () => "Docker version 28.5.2");
    assert.deepEqual([engine?.cdi, engine?.specDirs, engine?.runtimes], ["on", undefined, []], text);
  }
  for (const text of [
    "imports = 7",
    "plugins = 7",
    "imports = ['/a/*', 'b*', '', '*']",
    "[plugins.cri.containerd]\nruntimes = [[]]",
  ]) {
    const [engine] = readEngines(
      memory({ ...CONTAINERD, "/etc/containerd/config.toml": text }),
      () => "containerd x 2.1.9",
    );
    assert.deepEqual([engine?.cdi, engine?.runtimes], ["on", []], text);
  }
});

/** A runtime of ours in containerd's settings, with these lists of patterns. */
function runtime(pod: string, container: string, binary = "/usr/local/bin/sluice-runtime"): string {
  return `version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gpu]
runtime_type = 'io.containerd.runc.v2'
pod_annotations = ${pod}
container_annotations = ${container}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.gpu.options]
BinaryName = '${binary}'
`;
}

test("containerd's patterns of annotations: * stands for no slash, and what they drop is told", () => {
  const told = (text: string): string | undefined => {
    const sys = machine("rhel", { ...CONTAINERD, "/etc/containerd/config.toml": text });
    withVersion(sys, "containerd", "containerd x 2.1.9 y");
    return findings(sys).find(({ code }) => code === "annotations-dropped")?.what;
  };
  const all = "['gpu.sluice.dev', 'gpu.sluice.dev/*', 'cdi.k8s.io/*']";
  assert.equal(told(runtime(all, all)), undefined);
  assert.equal(told(runtime("['*']", "['*']", "/usr/bin/runc")), undefined, "another runtime is none of our concern");
  assert.equal(
    told(runtime("['*']", all)),
    "containerd's runtime gpu does not pass on the annotations of pods gpu.sluice.dev/pod, gpu.sluice.dev/container.NAME",
  );
  assert.match(
    told(runtime("[]", "[]")) ?? "",
    /of pods gpu\.sluice\.dev, .*, and of containers gpu\.sluice\.dev, cdi/,
  );
  assert.ok(matches("*/*", "a/b") && !matches("*", "a/b") && matches("a?c", "abc") && !matches("a.c", "abc"));
});

test("--engine looks at one, and fails where it is not there", () => {
  const sys = machine("rhel", { ...DOCKER, ...CONTAINERD });
  withVersion(sys, "dockerd", "Docker version 24.0.0, build 1");
  withVersion(sys, "containerd", "containerd x v1.6.0 y");
  const off = (engine: "docker" | "containerd"): string[] =>
    findings(sys, engine).flatMap(({ code, what }) => (code === "engine-cdi-off" ? [what] : []));
  assert.deepEqual(off("docker"), ["Docker 24.0.0 has no CDI"]);
  assert.deepEqual(off("containerd"), ["containerd 1.6.0 has no CDI"]);
  assert.ok(findings(sys, "podman").some(({ code, severity }) => code === "engine-missing" && severity === "error"));
});

test("settings of ours that cannot be used do not end the examination", () => {
  const sys = machine("lost-gpu", { "/etc/sluice/config.toml": "[cdi]\nspec_dir = 1\n" });
  assert.match(only(sys, "settings-broken").what, /E_CONFIG_KEY/);
  assert.ok(has(sys, "gpu-lost"));
});

test("no runtime to create containers, a state folder of others, receipts that are left", () => {
  assert.match(only(machine("rhel", { "/usr/bin/runc": undefined }), "no-runtime").what, /^none of .*runc, crun/);
  assert.match(
    only(machine("rhel", { "/run/sluice": dir({ mode: 0o777 }) }), "state-folder").what,
    /has the mode 0777$/,
  );
  assert.match(
    only(machine("rhel", { "/run/sluice": dir({ uid: 7 }) }), "state-folder").what,
    /belongs to user 7, not 0$/,
  );
  const readOnly = "20 1 0:1 / / rw - ext4 x rw\n21 20 0:2 / /run ro,nosuid - tmpfs x rw\n";
  assert.match(only(machine("rhel", { "/proc/self/mountinfo": readOnly }), "state-folder").what, /read-only$/);

  const sys = machine("rhel");
  const text = JSON.stringify({ devices: [], edits: [] });
  const plan = { devices: [], edits: [], specs: [], digest: sys.sha256(text), text };
  new Receipts(sys, "/run/sluice").write("gone", "runtime", "/bundle/config.json", "", plan);
  assert.equal(only(sys, "receipt-left").fix, "rm /run/sluice/receipts/gone.json");
  sys.put("/bundle/config.json", "{}");
  assert.ok(!has(sys, "receipt-left"));
  // sluiced is told of no config.json.
  new Receipts(sys, "/run/sluice").write("lives", "nri", "", "", plan);
  assert.ok(!has(sys, "receipt-left"));
});

test("cgroups: v1 without device control, and crun on both versions at once", () => {
  const v1 = { "/sys/fs/cgroup": undefined, "/sys/fs/cgroup/memory": dir() };
  assert.ok(has(machine("rhel", v1), "no-device-controller"));
  const hybrid = {
    "/sys/fs/cgroup": undefined,
    "/sys/fs/cgroup/devices": dir(),
    "/sys/fs/cgroup/unified/cgroup.controllers": "",
  };
  assert.ok(!has(machine("rhel", hybrid), "crun-on-hybrid-cgroup"));
  const crun = { ...hybrid, "/usr/bin/runc": undefined, "/usr/bin/crun": file("", { mode: 0o755 }) };
  assert.ok(has(machine("rhel", crun), "crun-on-hybrid-cgroup"));
});

test("SELinux: the boolean decides, where it is there", () => {
  const boolean = "/sys/fs/selinux/booleans/container_use_devices";
  assert.equal(only(machine("rhel", { [boolean]: "0 0" }), "selinux-devices").severity, "warning");
  assert.ok(!has(machine("rhel", { [boolean]: "1 1" }), "selinux-devices"));
  assert.ok(!has(machine("rhel", { "/sys/fs/selinux/enforce": "0" }), "selinux-devices"));
});

test("kernel: openat2, and file systems that it cannot mount with other owners", () => {
  const old = machine("rhel");
  old.fail("stat", "/:/", "ENOSYS");
  assert.ok(has(old, "kernel-too-old"));

  const on = (type: string): Changes => ({ "/proc/self/mountinfo": `20 1 0:1 / / rw - ${type} x rw\n` });
  assert.match(only(machine("rhel", on("nfs4")), "no-idmapped-mounts").what, /lie on nfs4, which Linux cannot/);
  assert.ok(!has(machine("rhel", on("xfs")), "no-idmapped-mounts"));
  const kernel = { "/proc/sys/kernel/osrelease": "5.14.0-570.el9\n" };
  assert.match(
    only(machine("rhel", { ...on("overlay"), ...kernel }), "no-idmapped-mounts").fix,
    /Linux 5\.19 or newer/,
  );
  assert.ok(!has(machine("rhel", { ...on("xfs"), ...kernel }), "no-idmapped-mounts"));
});

test("what cannot be looked at is a finding, and nothing throws, whatever fails", () => {
  for (const call of ["readText", "readBytes", "list", "stat", "lstat", "readLink", "capture"]) {
    for (const code of ["EACCES", "EIO", "ELOOP"]) {
      const sys = machine("a100-mig-2", { ...DOCKER, "/etc/cdi/x.json": spec("nvidia.com/gpu", ANY) });
      sys.euid = 1000;
      sys.fail(call, "*", code);
      const found = findings(sys);
      assert.ok(found.length > 0, `${call} ${code}`);
    }
  }
  const sys = machine("lost-gpu");
  sys.euid = 1000;
  sys.fail("readText", "/proc/driver/nvidia/params", "EACCES");
  const { what, fix } = only(sys, "not-seen");
  assert.match(what, /\/proc\/driver\/nvidia\/params \(EACCES\)/);
  assert.equal(fix, "run sluice doctor as root");
});

/** The text for people, of another tree. */
function text(tree: Tree): string {
  const sys = memory({ "/host": dir(), "/run": dir() });
  for (const [path, node] of Object.entries(tree)) sys.put(`/host${path}`, node);
  examine(sys, { json: false, root: "/host" }, () => openMachine(sys, { root: "/host" }));
  return sys.output;
}

test("for people: the worst first, each with why and fix, then how many and what was looked at", () => {
  const output = text(HOSTS["lost-gpu"]().tree);
  assert.match(output, /^error: GPU 2 .* \[gpu-lost\]\n {2}why: .*\n {2}fix: dmesg.*\n {7}then stop/);
  assert.match(output, /\n\n1 error, 2 warnings\.\nLooked at: 4 GPUs, their drivers and nodes; 0 CDI specs in .*\.\n$/);
  const healthy = text({ ...HOSTS.gvtg().tree, "/etc/cdi/i.json": spec("intel.com/gpu", ANY) });
  assert.match(healthy, /^Nothing found\.\nLooked at: 1 GPU, .*; 1 CDI spec in /);
});

test("a hostile tree ends the examination neither, and draws nothing on the terminal", () => {
  const { tree } = hostile();
  const output = text({ ...tree, "/etc/cdi/\u001b[31m.json": "{" });
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that must not be there
  assert.ok(!/[\0-\x09\x0b-\x1f\x7f]/.test(output));
});
