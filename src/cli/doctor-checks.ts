/**
 * What can be wrong with a machine that gives GPUs to containers: a function for each thing to check, from the facts to
 * what was found. docs/doctor.md lists the codes.
 */

import type { FileProblem } from "../cdi/spec-index.ts";
import { minimumVersion, versionRank } from "../cdi/version.ts";
import { compareVersions, type Engine, type EngineName, matches } from "../host/engines.part.ts";
import type { Node } from "../host/node.ts";
import type { NvidiaGpu, NvidiaGpuState } from "../host/nvidia.ts";
import { SluiceError } from "../sys/error.ts";
import type { Facts, SpecState, WantedNode } from "./doctor-facts.ts";
import { checkNode, protectionsOf } from "./doctor-node-checks.ts";
import { counted, list, word } from "./words.ts";

export interface Finding {
  /** Stable: match on it. */
  readonly code: string;
  /**
   * `error`: a GPU, or a container that asks for one, does not work. `warning`: it does not in some way of asking, or
   * will not after what is to be expected. `note`: good to know.
   */
  readonly severity: "error" | "warning" | "note";
  readonly what: string;
  readonly why: string;
  /** Commands, a line each, or what to do. */
  readonly fix: string;
}

type Check = (facts: Facts) => Finding[];

function gpuName({ index, address, model }: NvidiaGpu): string {
  return `GPU ${index ?? "-"} (${address}${model === undefined ? "" : `, ${model}`})`;
}

// --- The machine and its GPUs ---

const checkPlatform: Check = ({ host }) => {
  if (host.platform === "linux") return [];
  const what = { wsl: "Windows Subsystem for Linux", tegra: "NVIDIA Tegra" }[host.platform];
  return [
    {
      code: "unsupported-platform",
      severity: "warning",
      what: `this is ${what}`,
      why: "its GPU has a driver of another kind, which Sluice does not serve yet; what follows may not apply",
      fix: "use the tools of the platform's vendor here",
    },
  ];
};

const checkGpuThere: Check = ({ host }) => {
  const count = host.nvidia.gpus.length + host.amd.gpus.length + host.intel.length + host.vfio.mdevParents.length;
  if (count > 0 || host.platform !== "linux") return [];
  return [
    {
      code: "no-gpu",
      severity: "note",
      what: "there is no GPU that a driver of NVIDIA's, AMD's or Intel's has, and none of NVIDIA's on the bus",
      why: "there is nothing to give to containers",
      fix: "where there should be one, look for it: lspci -nnk -d ::0300; lspci -nnk -d ::0302; lspci -nnk -d ::1200",
    },
  ];
};

function gpusIn(facts: Facts, state: NvidiaGpuState): readonly NvidiaGpu[] {
  return facts.host.nvidia.gpus.filter((gpu) => gpu.state === state);
}

/** Whether the driver has a GPU that can be given; the node is made when somebody needs it. */
function isServed({ state }: NvidiaGpu): boolean {
  return state === "usable" || state === "no-node";
}

const checkLost: Check = (facts) =>
  gpusIn(facts, "lost").map((gpu) => ({
    code: "gpu-lost",
    severity: "error",
    what: `${gpuName(gpu)} does not answer any more`,
    why: "it fell off the bus, mostly by a fault of the hardware; the other GPUs go on, this one cannot be given",
    fix: "dmesg | grep -i xid   # why\nthen stop what uses GPUs, and restart the machine: systemctl reboot",
  }));

const checkExcluded: Check = (facts) =>
  gpusIn(facts, "excluded").map((gpu) => ({
    code: "gpu-excluded",
    severity: "note",
    what: `${gpuName(gpu)} is excluded from the driver by its settings (NVreg_ExcludedGpus)`,
    why: "it is not given to containers",
    fix: "where that is not meant: grep -rn NVreg_ExcludedGpus /etc/modprobe.d /proc/cmdline",
  }));

const checkDriverLoaded: Check = (facts) => {
  const { driverVersion, driver } = facts.host.nvidia;
  const gpus = gpusIn(facts, "no-driver");
  if (gpus.length === 0 || facts.host.platform !== "linux") return [];
  const other = [...new Set(gpus.flatMap((gpu) => gpu.pci?.driver ?? []))];
  const names = list(gpus.map(({ address }) => address));
  const bound = other.length === 0 ? "no driver has it" : `the driver ${other.join(", ")} has it`;
  const isInstalled = driverVersion !== undefined || driver !== undefined;
  const fix = isInstalled
    ? `modprobe nvidia${other.includes("nouveau") ? "   # after a restart without nouveau: it has to be blacklisted" : ""}`
    : "install NVIDIA's driver (the package of your distribution), then: modprobe nvidia";
  return [
    {
      code: "no-driver",
      severity: driverVersion === undefined ? "error" : "warning",
      what: `NVIDIA's driver does not have ${gpus.length === 1 ? "the GPU" : "the GPUs"} ${names}: ${bound}`,
      why: "without the driver there is nothing that a container could open",
      fix,
    },
  ];
};

const checkDriverFiles: Check = ({ host: { nvidia } }) => {
  const { driverVersion, driver } = nvidia;
  if (driverVersion === undefined || driver === undefined || nvidia.gpus.length === 0) return [];
  // Of an old driver, the 32-bit libraries may still be there.
  const hasCuda = driver.libraries.some(({ soname, bits }) => soname === "libcuda.so.1" && bits === 64);
  const others = driver.otherVersions.join(", ");
  if (!hasCuda && others !== "") {
    return [
      {
        code: "driver-half-upgraded",
        severity: "error",
        what: `the driver ${driverVersion} is loaded, and the libraries on disk are those of ${others}`,
        why: "the two do not work together: programs on the machine and in containers fail until the new driver is loaded",
        fix: "restart the machine: systemctl reboot",
      },
    ];
  }
  if (!hasCuda) {
    const isHostOfVgpus = driver.libraries.some(({ soname }) => /^libnvidia-vgpu\.so/.test(soname));
    if (isHostOfVgpus) return [];
    return [
      {
        code: "driver-files-missing",
        severity: "error",
        what: `the driver ${driverVersion} is loaded, and there is no libcuda.so.${driverVersion} in the library folders`,
        why: "containers get the driver's libraries from the machine, and programs that use CUDA do not start without",
        fix: `install the libraries of ${driverVersion} (libcuda, libnvidia-ml, nvidia-smi) by the way the driver was installed`,
      },
    ];
  }
  if (others === "") return [];
  return [
    {
      code: "driver-other-versions",
      severity: "warning",
      what: `beside the libraries of the loaded driver ${driverVersion} lie those of ${others}`,
      why: "an upgrade was begun or an old driver not removed; after the next restart another driver may be loaded",
      fix: "remove the driver that is not meant to be used by the way it was installed, then restart the machine",
    },
  ];
};

const checkPersistence: Check = ({ host }) => {
  const { gpus, sockets } = host.nvidia;
  if (!gpus.some(isServed)) return [];
  if (sockets.some((path) => path.includes("persistenced"))) return [];
  return [
    {
      code: "no-persistence-daemon",
      severity: "note",
      what: "nvidia-persistenced does not run (whether the older persistence mode is on, no file tells)",
      why:
        "without either, the driver lets go of a GPU that nobody has open, and the next container waits a second or more " +
        "for each GPU",
      fix: "systemctl enable --now nvidia-persistenced",
    },
  ];
};

const checkFabric: Check = ({ host: { nvidia } }) => {
  if (nvidia.nvswitches.length === 0 || nvidia.sockets.some((path) => path.includes("fabricmanager"))) return [];
  return [
    {
      code: "no-fabric-manager",
      severity: "warning",
      what: "this machine has NVSwitches, and nvidia-fabricmanager seems not to run (it has no socket)",
      why: "until it has set up the switches, CUDA does not start on any of the GPUs (system not yet initialized)",
      fix: "systemctl enable --now nvidia-fabricmanager",
    },
  ];
};

// --- Nodes ---

/** The mode and owner that the driver gives to nodes: its settings tell them in decimal. */
function nodeOwner({ host }: Facts): { mode: string; owner: string } {
  const number = (key: string): number =>
    Number(new RegExp(`^${key}: (\\d{1,6})$`, "m").exec(host.nvidia.params ?? "")?.[1] ?? -1);
  const [mode, uid, gid] = [number("DeviceFileMode"), number("DeviceFileUID"), number("DeviceFileGID")];
  return {
    mode: mode < 0 ? "666" : mode.toString(8),
    owner: uid > 0 || gid > 0 ? `${Math.max(uid, 0)}:${Math.max(gid, 0)}` : "",
  };
}

function makeNode(facts: Facts, path: string, major: number, minor: number, isThere: boolean): string {
  const { mode, owner } = nodeOwner(facts);
  const folder = path.slice(0, path.lastIndexOf("/"));
  const isCap = folder !== "/dev";
  const steps = [
    ...(isThere ? [`rm ${path}`] : isCap ? [`mkdir -p ${folder}`] : []),
    // Everybody may read a capability's node; who gets it is what counts.
    `mknod -m ${isCap ? "444" : mode} ${path} c ${major} ${minor}`,
    ...(owner === "" || isCap ? [] : [`chown ${owner} ${path}`]),
  ];
  return steps.join(" && ");
}

const WITHOUT_NODE =
  "Sluice's own specs state the driver's numbers then, but other tools' specs and the machine's programs need the node";

const checkGpuNodes: Check = (facts) => {
  const { major = 195 } = facts.host.nvidia;
  const gpus = gpusIn(facts, "no-node");
  if (gpus.length === 0) return [];
  const fixes = gpus.map(({ minor, address }) => {
    if (minor === undefined) return `nvidia-smi   # ${address}: the driver tells no minor`;
    const path = `/dev/nvidia${minor}`;
    // The machine tells of a node with other numbers as of something that it could not make out.
    const isThere = facts.host.unseen.some((unseen) => unseen.path === path);
    return makeNode(facts, path, major, minor, isThere);
  });
  return [
    {
      code: "gpu-node-missing",
      severity: "warning",
      what: `${list(gpus.map(gpuName))}: the node is missing, or is another device's`,
      why: `nobody has used the driver since the machine started, or somebody removed the node; ${WITHOUT_NODE}`,
      fix: fixes.join("\n"),
    },
  ];
};

const checkUvm: Check = ({ hasUvm, wanted }) => {
  if (hasUvm || !wanted.some(({ path }) => path === "/dev/nvidia-uvm")) return [];
  return [
    {
      code: "uvm-not-loaded",
      severity: "error",
      what: "the kernel module nvidia_uvm is not loaded",
      why: "CUDA does not start without it; on the machine itself it is loaded by the first program that uses CUDA, in a container it cannot be",
      fix: "nvidia-modprobe -u -c=0",
    },
  ];
};

function isMig({ path }: WantedNode): boolean {
  return path.startsWith("/dev/nvidia-caps/");
}

const checkWantedNodes: Check = (facts) => {
  const missing = facts.wanted.filter(
    // The module makes them when it is loaded, which is said already.
    ({ there, path }) => there === undefined && (facts.hasUvm || !path.startsWith("/dev/nvidia-uvm")),
  );
  const wrong = facts.wanted.filter(
    ({ there, major, minor }) => there && (there.major !== major || there.minor !== minor),
  );
  const fix = (nodes: readonly WantedNode[]): string =>
    nodes
      .map((node) => {
        if (node.major < 0) return `nvidia-modprobe -u -c=0   # for ${node.path}`;
        return makeNode(facts, node.path, node.major, node.minor, node.there !== undefined);
      })
      .join("\n");
  const findings: Finding[] = [];
  const control = missing.filter((node) => !isMig(node));
  if (control.length > 0) {
    findings.push({
      code: "control-node-missing",
      severity: "warning",
      what: `${list(control.map(({ path, of }) => `${path} (for ${of})`))} ${control.length === 1 ? "is" : "are"} missing`,
      why: `these nodes belong to the driver as a whole, and all its GPUs need them; ${WITHOUT_NODE}`,
      fix: fix(control),
    });
  }
  const mig = missing.filter(isMig);
  if (mig.length > 0) {
    findings.push({
      code: "mig-node-missing",
      severity: "warning",
      what: `nodes of MIG devices are missing: ${list(mig.map(({ path, of }) => `${path} (${of})`))}`,
      why: `a MIG device is opened through the nodes of its two instances; ${WITHOUT_NODE}`,
      fix: fix(mig),
    });
  }
  if (wrong.length > 0) {
    const told = wrong.map(
      ({ path, there, major, minor }) => `${path} is ${there?.major}:${there?.minor}, not ${major}:${minor}`,
    );
    findings.push({
      code: "node-renumbered",
      severity: "error",
      what: list(told),
      why: "the kernel gave the driver another number than when the node was made: who opens it gets something else, or nothing",
      fix: fix(wrong),
    });
  }
  return findings;
};

const checkDrmNodes: Check = ({ host }) => {
  const devices = [
    ...host.nvidia.gpus.flatMap(({ state, pci, drm }) => (state === "usable" && pci ? [{ pci, drm }] : [])),
    ...host.amd.gpus.map(({ pci, devices: [first] }) => ({ pci, drm: first?.drm ?? [] })),
    ...host.intel,
  ];
  const gone = devices.flatMap(({ pci, drm }) =>
    pci.drm.map((name) => `/dev/dri/${name}`).filter((path) => !drm.some((node) => node.path === path)),
  );
  if (gone.length === 0) return [];
  return [
    {
      code: "drm-node-missing",
      severity: "warning",
      what: `${list(gone)} ${gone.length === 1 ? "is" : "are"} missing, although the kernel has the device`,
      why: "AMD's and Intel's GPUs are opened by these nodes, and NVIDIA's for graphics",
      fix: "udevadm trigger --subsystem-match=drm && udevadm settle",
    },
  ];
};

const checkKfd: Check = ({ host: { amd } }) => {
  if (amd.gpus.length === 0 || amd.kfd !== undefined) return [];
  return [
    {
      code: "kfd-missing",
      severity: "warning",
      what: "there is no /dev/kfd, the node of AMD's compute driver",
      why: "ROCm opens it beside the GPU's own node, and containers that compute with it do not start without",
      fix: "dmesg | grep -i kfd   # why\nudevadm trigger --name-match=kfd && udevadm settle",
    },
  ];
};

const checkCharLinks: Check = ({ unlinked = [] }) => {
  if (unlinked.length === 0) return [];
  const link = ({ path, major, minor }: Node): string =>
    `ln -s ..${path.slice("/dev".length)} /dev/char/${major}:${minor}`;
  return [
    {
      code: "dev-char-link-missing",
      severity: "warning",
      what: `${list(unlinked.map(({ path }) => path))} ${unlinked.length === 1 ? "has" : "have"} no link in /dev/char`,
      why:
        "where the engine leaves cgroups to systemd, systemd finds devices by these links: after the next systemctl " +
        "daemon-reload, running containers lose their GPU",
      fix: unlinked.map(link).join("\n"),
    },
  ];
};

// --- CDI specs ---

const OWN = /\/sluice-[^/]*\.json$/;

/** How to write a spec anew. */
function rewrite({ path, spec }: Pick<SpecState, "path" | "spec">): string {
  if (OWN.test(path)) return "sluice cdi generate";
  const tool = spec.kind.startsWith("nvidia.com/")
    ? `nvidia-ctk cdi generate --output=${word(path)}   # where that tool made it\n`
    : `write ${word(path)} anew with the tool that made it\n`;
  return `${tool}or remove it, and have Sluice make one: rm ${word(path)} && sluice cdi generate`;
}

const checkNoSpec: Check = (facts) => {
  const { host, devices } = facts;
  const kinds = [
    ...(host.nvidia.gpus.some(isServed) ? ["nvidia.com/gpu"] : []),
    ...(host.amd.gpus.length > 0 ? ["amd.com/gpu"] : []),
    ...(host.intel.length > 0 ? ["intel.com/gpu"] : []),
  ].filter((kind) => !devices.some(({ name }) => name.startsWith(`${kind}=`)));
  if (kinds.length === 0) return [];
  return [
    {
      code: "no-spec",
      severity: "warning",
      what: `there is no CDI spec of ${list(kinds)} in ${facts.specDirs.join(", ")}`,
      why: "engines and Sluice alike give the devices that specs describe",
      fix: "sluice cdi generate",
    },
  ];
};

/** The two files of each conflict, with the devices. */
const checkConflicts: Check = ({ devices }) => {
  const pairs = new Map<string, { files: readonly [string, string]; names: Set<string> }>();
  for (const { name, path, conflictsWith } of devices) {
    if (conflictsWith === undefined) continue;
    const files = [path, conflictsWith].sort() as [string, string];
    const pair = pairs.get(files.join("\n")) ?? { files, names: new Set() };
    pairs.set(files.join("\n"), pair);
    pair.names.add(name);
  }
  return [...pairs.values()].map(({ files, names }) => ({
    code: "spec-conflict",
    severity: "error",
    what: `${files.join(" and ")} both define ${list([...names])}`,
    why: "of two specs of one folder that define the same device, CDI takes neither: no engine can give it",
    fix: `remove the one that is not needed: rm ${word(files[0])}, or rm ${word(files[1])}`,
  }));
};

const checkShadowed: Check = ({ devices }) => {
  const shadowed = new Map<string, { by: Set<string>; names: string[] }>();
  for (const { name, path, shadowedBy } of devices) {
    if (shadowedBy === undefined) continue;
    const known = shadowed.get(path) ?? { by: new Set(), names: [] };
    shadowed.set(path, known);
    known.by.add(shadowedBy);
    known.names.push(name);
  }
  return [...shadowed].map(([path, { by, names }]) => ({
    code: "spec-shadowed",
    severity: "note",
    what: `${path} defines ${list(names)}, and ${list([...by])} in a later folder counts in its place`,
    why: "what stands in the first has no effect, which is easily forgotten when it is changed",
    fix: `where it is not meant, remove it: rm ${word(path)}`,
  }));
};

const SPEC_CODES: Readonly<Record<string, readonly [code: string, why: string]>> = {
  E_CDI_UNTRUSTED: [
    "spec-untrusted",
    "whoever can write there decides what containers get, as root; Sluice does not use it",
  ],
  E_CDI_READ: ["spec-unreadable", "what is in it cannot be given"],
};

const checkSpecFiles: Check = ({ problems }) => {
  const byFile = new Map<string, FileProblem[]>();
  for (const problem of problems) {
    if (problem.code === "E_CDI_CONFLICT") continue;
    byFile.set(problem.path, [...(byFile.get(problem.path) ?? []), problem]);
  }
  return [...byFile].map(([path, found]) => {
    const [first, ...rest] = found as [FileProblem, ...FileProblem[]];
    const [code, why] = SPEC_CODES[first.code] ?? [
      "spec-broken",
      "engines pass over the file, and its devices cannot be given",
    ];
    const place = first.pointer === "" ? "" : ` at ${first.pointer}`;
    const more = rest.length === 0 ? "" : ` (and ${counted(rest.length, "more problem", "more problems")})`;
    const check = code === "spec-broken" ? `\nsluice cdi validate ${word(path)}   # until nothing is left` : "";
    return {
      code,
      severity: "error",
      what: `${path}${place}: ${first.what}${more}`,
      why,
      fix: `${first.remedy}${check}`,
    };
  });
};

const checkSpecStates: Check = ({ specs }) =>
  specs.flatMap((state): Finding[] => {
    const { path, missing, renumbered, differences } = state;
    if (differences.length > 0) {
      return [
        {
          code: "spec-stale",
          severity: "error",
          what: `${path} is no longer right: ${list(differences)}`,
          why: "Sluice's own doors put it right at the next start of a container; an engine's own CDI takes it as it is",
          fix: "sluice cdi generate",
        },
      ];
    }
    return [
      ...(missing.length === 0
        ? []
        : [
            {
              code: "spec-names-missing",
              severity: "error" as const,
              what: `${path} names what is not there: ${list(missing)}`,
              why: "a container that asks for one of its devices does not start; as a rule, a driver was upgraded since",
              fix: rewrite(state),
            },
          ]),
      ...(renumbered.length === 0
        ? []
        : [
            {
              code: "spec-renumbered",
              severity: "error" as const,
              what: `${path} states other device numbers than those of ${list(renumbered)}`,
              why: "the kernel gives most drivers other numbers at each start: a container gets another device, or a dead one",
              fix: rewrite(state),
            },
          ]),
    ];
  });

// --- Engines ---

const checkEngineVersion: Check = ({ engines, isOwn }) =>
  engines.flatMap(({ title, program, version }): Finding[] => {
    if (!isOwn || version !== undefined) return [];
    return [
      {
        code: "engine-version-unknown",
        severity: "note",
        what: `${program} --version does not tell the version of ${title}`,
        why: "which CDI specs it takes, and whether it looks at them at all, is not checked",
        fix: `${program} --version   # why`,
      },
    ];
  });

/** What to set so that an engine does CDI by itself. */
function switchOn({ name, version = "0" }: Engine): string {
  if (name === "docker") {
    const isDefault = compareVersions(version, "28.2") >= 0;
    const change = isDefault
      ? 'take "cdi": false out of "features", and "cdi-spec-dirs": [""]'
      : 'set "features": {"cdi": true}, and take out "cdi-spec-dirs": [""] where it is';
    return `in /etc/docker/daemon.json ${change}; then: systemctl restart docker`;
  }
  const plugin = compareVersions(version, "2") < 0 ? "io.containerd.grpc.v1.cri" : "io.containerd.cri.v1.runtime";
  return `in /etc/containerd/config.toml, table [plugins.'${plugin}'], set enable_cdi = true; then: systemctl restart containerd`;
}

const checkEngineCdi: Check = ({ engines }) =>
  engines.flatMap((engine): Finding[] => {
    const { name, title, version, cdi } = engine;
    if (cdi === undefined || cdi === "on") return [];
    return [
      {
        code: "engine-cdi-off",
        severity: "warning",
        what: cdi === "none" ? `${title} ${version} has no CDI` : `CDI is not switched on in ${title} ${version}`,
        why: `devices asked for by the engine's own means are not given (${ASKING[name]}); through Sluice as runtime they are`,
        fix: cdi === "none" ? `install a newer ${title}, or use Sluice as its runtime` : switchOn(engine),
      },
    ];
  });

const ASKING: Readonly<Record<EngineName, string>> = {
  docker: "docker run --device VENDOR/CLASS=NAME",
  containerd: "the kubelet's CDI devices, annotations cdi.k8s.io/*",
  crio: "the kubelet's CDI devices, annotations cdi.k8s.io/*",
  podman: "podman run --device VENDOR/CLASS=NAME",
};

const checkEngineSpecVersion: Check = ({ engines, specs }) =>
  engines.flatMap(({ title, version, newestCdi, cdi }) => {
    if (newestCdi === undefined || cdi !== "on") return [];
    return specs
      .filter(({ spec }) => versionRank(spec.cdiVersion) > versionRank(newestCdi))
      .map(({ path, spec }): Finding => {
        const least = minimumVersion(spec);
        const canBeOlder = versionRank(least.version) <= versionRank(newestCdi);
        return {
          code: "spec-too-new",
          severity: "warning",
          what: `${path} is of CDI ${spec.cdiVersion}, and ${title} ${version} takes ${newestCdi} at most`,
          why: `${title} passes over the whole file, and says in its log only; through Sluice as runtime its devices are given`,
          fix: canBeOlder
            ? `write it as an older version, for it uses nothing newer: in ${path}, cdiVersion ${least.version}`
            : `install a newer ${title}: ${least.reason || "any spec of today"} needs CDI ${least.version}`,
        };
      });
  });

const checkEngineSpecDirs: Check = ({ engines, specs }) =>
  engines.flatMap(({ title, specDirs, settings, cdi }) => {
    if (specDirs === undefined || cdi === "off" || cdi === "none") return [];
    const plain = (path: string): string => path.replace(/^\/var\/run\//, "/run/").replace(/\/+$/, "");
    const known = new Set(specDirs.map(plain));
    const used = [...new Set(specs.map(({ path }) => path.slice(0, path.lastIndexOf("/"))))];
    const unknown = used.filter((dir) => !known.has(plain(dir)));
    if (unknown.length === 0) return [];
    return [
      {
        code: "engine-spec-dirs",
        severity: "warning",
        what: `${title} looks for CDI specs in ${list(specDirs)} only, and there are specs in ${list(unknown)}`,
        why: "devices of these are unknown to the engine's own CDI",
        fix: `add ${unknown.join(", ")} to its folders of specs in ${list(settings.map(({ path }) => path))}, and restart it`,
      },
    ];
  });

const checkEngineSettings: Check = ({ engines }) =>
  engines.flatMap(({ title, settings }) =>
    settings.flatMap(({ path, fault }): Finding[] =>
      fault === undefined
        ? []
        : [
            {
              code: "engine-settings-broken",
              severity: "warning",
              what: `the settings of ${title}, ${path}: ${fault}`,
              why: "the engine may not start the next time, and what it is set to do cannot be told here",
              fix: `correct ${path}`,
            },
          ],
    ),
  );

/** Annotations by which pods and containers ask, of each form one. */
const POD_ANNOTATIONS = ["gpu.sluice.dev", "gpu.sluice.dev/pod", "gpu.sluice.dev/container.NAME"];
const CONTAINER_ANNOTATIONS = ["gpu.sluice.dev", "cdi.k8s.io/NAME"];

const checkAnnotations: Check = ({ engines }) =>
  engines.flatMap(({ name, settings, runtimes }) =>
    name !== "containerd"
      ? []
      : runtimes.flatMap((runtime): Finding[] => {
          const dropped = (patterns: readonly string[] = [], keys: readonly string[]): string[] =>
            keys.filter((key) => !patterns.some((pattern) => matches(pattern, key)));
          const pod = dropped(runtime.podAnnotations, POD_ANNOTATIONS);
          const container = dropped(runtime.containerAnnotations, CONTAINER_ANNOTATIONS);
          if (pod.length === 0 && container.length === 0) return [];
          const told = [
            ...(pod.length === 0 ? [] : [`of pods ${pod.join(", ")}`]),
            ...(container.length === 0 ? [] : [`of containers ${container.join(", ")}`]),
          ];
          const all = "['gpu.sluice.dev', 'gpu.sluice.dev/*', 'cdi.k8s.io/*']";
          return [
            {
              code: "annotations-dropped",
              severity: "warning",
              what: `containerd's runtime ${runtime.name} does not pass on the annotations ${told.join(", and ")}`,
              why: "a container that asks by them starts without its GPU, and nobody says so; * in a pattern stands for no slash",
              fix:
                `in its table in ${list(settings.map(({ path }) => path))}:\npod_annotations = ${all}\n` +
                `container_annotations = ${all}\nthen: systemctl restart containerd`,
            },
          ];
        }),
  );

// --- The kernel, and what stands around it ---

const checkKernel: Check = ({ hasOpenat2, kernel = "" }) => {
  // openat2 came with Linux 5.6; of this machine's kernel it was tried, since some have it back-ported.
  const isOld = hasOpenat2 === undefined ? kernel !== "" && compareVersions(numbers(kernel), "5.6") < 0 : !hasOpenat2;
  if (!isOld) return [];
  return [
    {
      code: "kernel-too-old",
      severity: "error",
      what: `the kernel ${kernel} has no openat2`,
      why: "without it Sluice cannot write into a container's files in safety, nor read another tree",
      fix: "run Linux 5.6 or newer",
    },
  ];
};

/** `6.8.0` of `6.8.0-71-generic`. */
function numbers(release: string): string {
  return /^[\d.]*\d/.exec(release)?.[0] ?? "0";
}

const checkCgroup: Check = ({ cgroup, hasDeviceController, runtime }) => {
  const findings: Finding[] = [];
  if ((cgroup === "v1" || cgroup === "hybrid") && !hasDeviceController) {
    findings.push({
      code: "no-device-controller",
      severity: "warning",
      what: "cgroup v1 is in use, and its device controller is not mounted",
      why: "nothing keeps a container from GPUs that it was not given, if it can make their nodes",
      fix: "mkdir -p /sys/fs/cgroup/devices && mount -t cgroup -o devices cgroup /sys/fs/cgroup/devices\nor start the machine with cgroup v2",
    });
  }
  if (cgroup === "hybrid" && typeof runtime === "string" && runtime.endsWith("/crun")) {
    findings.push({
      code: "crun-on-hybrid-cgroup",
      severity: "error",
      what: `containers are created by ${runtime}, and cgroups are in hybrid mode (v1 and v2 at once)`,
      why: "crun refuses that: cgroups in hybrid mode not supported",
      fix: "install runc, or start the machine with cgroup v2 alone: kernel parameter systemd.unified_cgroup_hierarchy=1",
    });
  }
  return findings;
};

const checkSelinux: Check = ({ selinux, host }) => {
  const hasGpus = host.nvidia.gpus.length + host.amd.gpus.length + host.intel.length > 0;
  if (selinux?.enforcing !== true || selinux.useDevices === true || !hasGpus) return [];
  const isKnown = selinux.useDevices === false;
  return [
    {
      code: "selinux-devices",
      severity: isKnown ? "warning" : "note",
      what: isKnown
        ? "SELinux is enforcing, and does not let containers use devices (container_use_devices is off)"
        : "SELinux is enforcing, and whether it lets containers use devices cannot be seen (no boolean container_use_devices)",
      why: "where the engine labels containers, opening a GPU's node fails with EACCES, although the node is there",
      fix: isKnown
        ? "setsebool -P container_use_devices=true"
        : "install container-selinux, then: setsebool -P container_use_devices=true\nor for one container: --security-opt label=disable",
    },
  ];
};

/** Since which Linux a file system can be mounted with other owners (mount_setattr(2), "ID-mapped mounts"). */
const IDMAPPED: Readonly<Record<string, string>> = {
  ext4: "5.12",
  xfs: "5.12",
  vfat: "5.12",
  ntfs3: "5.15",
  btrfs: "5.15",
  f2fs: "5.18",
  erofs: "5.19",
  overlay: "5.19",
  squashfs: "6.2",
  tmpfs: "6.3",
  ceph: "6.7",
};
/** Those that cannot, in any. */
const NEVER_IDMAPPED = /^(?:nfs4?|cifs|smb3|9p|afs|aufs|ecryptfs)$/;

const checkIdmap: Check = ({ libraryFileSystem: type = "", kernel = "" }) => {
  const since = IDMAPPED[type];
  const isTooOld = since !== undefined && kernel !== "" && compareVersions(numbers(kernel), since) < 0;
  if (!NEVER_IDMAPPED.test(type) && !isTooOld) return [];
  return [
    {
      code: "no-idmapped-mounts",
      severity: "note",
      what: `the driver's files lie on ${type}, which ${isTooOld ? `Linux ${kernel}` : "Linux"} cannot mount with other owners`,
      why:
        "a container in a user namespace (Docker's userns-remap, Kubernetes' hostUsers: false) that gets them does not " +
        "start: runc says no more than EINVAL",
      fix: isTooOld
        ? `run Linux ${since} or newer, or give such containers no user namespace`
        : "install the driver on a local file system, or give such containers no user namespace",
    },
  ];
};

// --- Sluice itself ---

const checkSettings: Check = ({ settings }) =>
  settings === undefined
    ? []
    : [
        {
          code: "settings-broken",
          severity: "error",
          what: `the settings cannot be used: ${settings.code}: ${settings.what}`,
          why: "no container that asks for a GPU through Sluice starts until they can; what follows holds for the defaults",
          fix: settings.remedy,
        },
      ];

const checkRuntime: Check = ({ runtime }) =>
  runtime instanceof SluiceError
    ? [
        {
          code: "no-runtime",
          severity: "error",
          what: runtime.what,
          why: "Sluice changes what a container is made of, and leaves the making to runc or crun",
          fix: runtime.remedy,
        },
      ]
    : [];

const checkState: Check = ({ stateFault, stateDir }) =>
  stateFault === undefined
    ? []
    : [
        {
          code: "state-folder",
          severity: "error",
          what: stateFault,
          why: "Sluice keeps its receipts and caches where nobody else can write, and starts no container with a GPU otherwise",
          fix: `find out who made it so, then: rm -r ${word(stateDir)}   # it is made anew; running containers lose their receipts`,
        },
      ];

const checkReceipts: Check = ({ leftReceipts, stateDir }) =>
  leftReceipts.length === 0
    ? []
    : [
        {
          code: "receipt-left",
          severity: "note",
          what: `${counted(leftReceipts.length, "receipt is", "receipts are")} of containers that are gone: ${list(leftReceipts)}`,
          why: "they ended without Sluice being called, such as by a crash; the receipts do no harm",
          fix: leftReceipts.map((id) => `rm ${word(`${stateDir}/receipts/${id}.json`)}`).join("\n"),
        },
      ];

const checkSeen: Check = ({ host, unseen, euid }) => {
  const all = [...host.unseen, ...unseen];
  if (all.length === 0) return [];
  const isDenied = all.some(({ reason }) => reason === "EACCES" || reason === "EPERM");
  return [
    {
      code: "not-seen",
      severity: "warning",
      what: `not all could be looked at: ${list(all.map(({ path, reason }) => `${path} (${reason})`))}`,
      why: "what is wrong there is not found",
      fix:
        isDenied && euid !== 0
          ? "run sluice doctor as root"
          : "see what is said of each; sluice gpus --json lists them",
    },
  ];
};

const CHECKS: readonly Check[] = [
  checkPlatform,
  checkSettings,
  checkRuntime,
  checkState,
  checkKernel,
  checkGpuThere,
  checkLost,
  checkExcluded,
  checkDriverLoaded,
  checkDriverFiles,
  checkGpuNodes,
  checkUvm,
  checkWantedNodes,
  checkDrmNodes,
  checkKfd,
  checkFabric,
  checkCharLinks,
  checkSpecFiles,
  checkConflicts,
  checkSpecStates,
  checkNoSpec,
  checkShadowed,
  checkEngineSettings,
  checkEngineVersion,
  checkEngineCdi,
  checkEngineSpecVersion,
  checkEngineSpecDirs,
  checkAnnotations,
  checkNode,
  checkCgroup,
  checkSelinux,
  checkIdmap,
  checkPersistence,
  checkReceipts,
  checkSeen,
];

const RANK: Readonly<Record<Finding["severity"], number>> = { error: 0, warning: 1, note: 2 };

/** Everything that is wrong, the worst first. */
export function check(facts: Facts): Finding[] {
  return CHECKS.flatMap((one) => one(facts)).sort((a, b) => RANK[a.severity] - RANK[b.severity]);
}

/** What was looked at, a line each, for a person who is told that nothing was found. */
export function checked(facts: Facts): string[] {
  const { host, isOwn, specs, specDirs, engines } = facts;
  const protections = protectionsOf(facts);
  const gpus = host.nvidia.gpus.length + host.amd.gpus.length + host.intel.length;
  const told = engines.map(({ title, version }: Engine) => (version === undefined ? title : `${title} ${version}`));
  return [
    `${counted(gpus, "GPU", "GPUs")}, their drivers and nodes`,
    `${counted(specs.length, "CDI spec", "CDI specs")} in ${specDirs.join(", ")}`,
    told.length === 0 ? "no container engine that Sluice knows" : `the settings of ${told.join(", ")}`,
    ...(protections === undefined ? [] : [protections]),
    "cgroups, SELinux, the kernel",
    ...(isOwn ? ["Sluice's own settings, state folder and low-level runtime"] : []),
  ];
}
