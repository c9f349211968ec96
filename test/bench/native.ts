/** What engines' own CDI is measured on: a host of 8 GPUs and 60 libraries, its spec, and bundles as an engine makes them. */

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import type { Spec } from "../../src/cdi/spec.ts";
import { LIBRARIES as DRIVER_LIBRARIES } from "../fixtures/hosts/driver-files.ts";
import { elfLibrary, ldCache } from "../fixtures/hosts/elf.ts";
import { DRIVER, h100x8 } from "../fixtures/hosts/nvidia-hosts.ts";
import { binary } from "../support/memory-files.ts";
import { makeBundle } from "../support/simulated-host.ts";
import { writeTree } from "../support/tree-on-disk.ts";
import { keepConfig } from "./scenes.ts";

const LIBRARY_FOLDER = "/usr/lib/x86_64-linux-gnu";
/** Of 64 bits. */
export const LIBRARIES = 60;

/** In the cache of an image of glibc with CUDA's libraries. */
const IMAGE_LIBRARIES = 150;

/** Eight H100 with 60 libraries of 64 bits and none of 32, below a folder. */
export function makeGpuTree(dir: string): void {
  const tree = Object.fromEntries(Object.entries(h100x8().tree).filter(([file]) => !file.includes("/i386-linux-gnu/")));
  for (let i = DRIVER_LIBRARIES.length; i < LIBRARIES; i++) {
    const bytes = elfLibrary({ soname: `libnvidia-part${i}.so.1`, bits: 64, machine: "x86_64" });
    tree[`${LIBRARY_FOLDER}/libnvidia-part${i}.so.${DRIVER}`] = binary(bytes);
  }
  fs.mkdirSync(dir);
  writeTree(dir, tree);
}

/** Puts the libraries of such a tree among the machine's own, for this process's mount namespace. */
export function installLibraries(tree: string): void {
  const lower = `lowerdir=${LIBRARY_FOLDER}:${tree}${LIBRARY_FOLDER}`;
  execFileSync("mount", ["-t", "overlay", "-o", lower, "sluice-bench", LIBRARY_FOLDER]);
}

/** How many libraries a spec gives. */
export function librariesOf(spec: Spec): number {
  const mounts = spec.containerEdits?.mounts ?? [];
  return mounts.filter((mount) => /\/lib[^/]+\.so\.[\d.]+$/.test(mount.containerPath)).length;
}

/** What of a spec is put into a bundle's config.json. */
export type Part = "nothing" | "mounts and nodes" | "all";

/**
 * A bundle that has the edits of device `all` in its config.json, as an engine writes them. Its root has what makes the
 * hook do all its work: a loader, and a cache. The libraries must have been installed.
 */
export function makeNativeBundle(dir: string, tree: string, { containerEdits, devices }: Spec, part: Part): string {
  makeBundle(dir, { script: "true" });
  const root = path.join(dir, "rootfs");
  const cached = Array.from({ length: IMAGE_LIBRARIES }, (_, i) => `libpart${i}.so.1`);
  const entries = cached.map((name) => ({ name, path: `/lib/x86_64-linux-gnu/${name}`, machine: "x86_64" as const }));
  fs.mkdirSync(path.join(root, "lib64"));
  fs.writeFileSync(path.join(root, "lib64/ld-linux-x86-64.so.2"), "");
  fs.writeFileSync(path.join(root, "etc/ld.so.cache"), Buffer.from(ldCache(entries), "latin1"));
  fs.mkdirSync(path.join(root, "etc/ld.so.conf.d"));

  const file = path.join(dir, "config.json");
  const config = JSON.parse(fs.readFileSync(file, "utf8"));
  const edits = [containerEdits, devices.find((device) => device.name === "all")?.containerEdits];
  if (part !== "nothing") {
    for (const { containerPath, hostPath, options } of edits.flatMap((one) => one?.mounts ?? [])) {
      const source = hostPath.startsWith(`${LIBRARY_FOLDER}/`) ? hostPath : path.join(tree, hostPath);
      config.mounts.push({ destination: containerPath, type: "bind", source, options });
    }
    config.linux.devices = [];
    for (const node of edits.flatMap((one) => one?.deviceNodes ?? [])) {
      const { rdev } = fs.statSync(path.join(tree, node.path));
      const [major, minor] = [(rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff00)];
      config.linux.devices.push({ path: node.path, type: "c", major, minor, gid: node.gid });
      config.linux.resources.devices.push({ allow: true, type: "c", major, minor, access: node.permissions });
    }
  }
  if (part === "all") {
    const hooks = edits.flatMap((one) => one?.hooks ?? []);
    config.hooks = { createContainer: hooks.map(({ hookName: _, ...hook }) => hook) };
  }
  fs.writeFileSync(file, JSON.stringify(config, null, 2));
  keepConfig(dir);
  fs.renameSync(root, `${root}.original`);
  execFileSync("cp", ["-a", `${root}.original`, root]);
  return dir;
}

/** The step of timer.c that gives a bundle a root that no container has run in: each has its own. */
export function freshRoot(bundle: string): string[] {
  return ["do", "/bin/sh", "-c", 'rm -r "$0" && cp -a "$0.original" "$0"', path.join(bundle, "rootfs")];
}
