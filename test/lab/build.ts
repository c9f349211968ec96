/** The roots that engines run in. */

import * as fs from "node:fs";
import * as path from "node:path";
import { cached, placeOf } from "./cache.ts";
import { must, type Suite, unpack } from "./debian.ts";

/** The suites that hold the engines, and what is taken from each. */
const PACKAGES = {
  forky: ["containerd", "docker.io", "docker-cli", "podman", "runc", "crun", "conmon", "uidmap", "fuse-overlayfs"],
  trixie: ["containerd", "docker.io", "docker-cli", "runc", "crun"],
} as const;

export type EngineSuite = keyof typeof PACKAGES;

export const ENGINE_SUITES = Object.keys(PACKAGES) as EngineSuite[];

/** What the root of a machine has beside engines: a shell and its tools, an init that reaps, a way to bring `lo` up. */
const TOOLS = ["busybox-static", "tini"];

/** Large programs that nothing here runs. */
const UNUSED = ["usr/libexec/podman/podman-testing", "usr/lib/cni", "usr/lib/podman/netavark-*", "usr/lib/containerd"];

/** The user that runs rootless engines. */
export const USER = { name: "user", uid: 1000, subuid: 100_000, count: 65_536 } as const;

const FILES: Record<string, string> = {
  "etc/passwd":
    "root:x:0:0:root:/root:/bin/sh\n" +
    `${USER.name}:x:${USER.uid}:${USER.uid}::/home/${USER.name}:/bin/sh\n` +
    "dockremap:x:990:990::/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
  "etc/group": `root:x:0:\ntty:x:5:\n${USER.name}:x:${USER.uid}:\ndockremap:x:990:\nnogroup:x:65534:\n`,
  "etc/subuid": `${USER.name}:${USER.subuid}:${USER.count}\ndockremap:200000:65536\n`,
  "etc/subgid": `${USER.name}:${USER.subuid}:${USER.count}\ndockremap:200000:65536\n`,
  "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
  "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
  "etc/resolv.conf": "",
};

function recipe(suite: EngineSuite): [name: string, key: unknown] {
  return [`engines-${suite}`, [PACKAGES[suite], TOOLS, FILES, UNUSED, 1]];
}

/** Whether `engineRoot` has nothing to make. */
export function hasEngineRoot(suite: EngineSuite): boolean {
  return fs.existsSync(placeOf(...recipe(suite)));
}

/** The folder with a suite's engines: a whole Debian root, to be used beneath an overlay. */
export function engineRoot(suite: EngineSuite): string {
  const packages = [...PACKAGES[suite], ...TOOLS];
  return cached(...recipe(suite), (dir) => {
    unpack(dir, suite satisfies Suite, packages, { exclude: UNUSED });
    for (const [file, text] of Object.entries(FILES)) {
      fs.mkdirSync(path.dirname(path.join(dir, file)), { recursive: true });
      fs.writeFileSync(path.join(dir, file), text);
    }
    for (const folder of ["dev", "home", "proc", "root", "run", "sys", "tmp", "var/lib", "var/tmp"]) {
      fs.mkdirSync(path.join(dir, folder), { recursive: true });
    }
    fs.rmSync(path.join(dir, "var/run"), { force: true });
    fs.symlinkSync("../run", path.join(dir, "var/run"));
    // Applets for what no package brought: `sh`, `mount`, `ip` and so on.
    for (const applet of must("chroot", [dir, "/usr/bin/busybox", "--list-full"]).trim().split("\n")) {
      const link = path.join(dir, "usr/bin", path.basename(applet));
      const there = ["bin", "sbin"].some((bin) =>
        fs.lstatSync(path.join(dir, "usr", bin, path.basename(applet)), { throwIfNoEntry: false }),
      );
      if (!there) fs.symlinkSync("busybox", link);
    }
  });
}
