/** What the benchmark measures on: spec files, settings and bundles like those of a GPU node, in one folder. */

import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import * as path from "node:path";
import { dump } from "js-yaml";
import type { Device, Spec } from "../../src/cdi/spec.ts";
import { dockerConfig } from "../fixtures/oci/docker-config.ts";
import { DRIVER } from "../support/simulated-host.ts";

/** The files that NVIDIA's generator names for a driver of the 580 series: 48 of them. */
const LIBRARIES = `
  libcuda.so libcudadebugger.so libEGL_nvidia.so libGLESv1_CM_nvidia.so libGLESv2_nvidia.so libGLX_nvidia.so
  libnvcuvid.so libnvidia-allocator.so libnvidia-cfg.so libnvidia-eglcore.so libnvidia-encode.so libnvidia-fbc.so
  libnvidia-glcore.so libnvidia-glsi.so libnvidia-glvkspirv.so libnvidia-gpucomp.so libnvidia-gtk2.so
  libnvidia-gtk3.so libnvidia-ml.so libnvidia-ngx.so libnvidia-nscq.so libnvidia-nvvm.so libnvidia-nvvm70.so
  libnvidia-opencl.so libnvidia-opticalflow.so libnvidia-pkcs11-openssl3.so libnvidia-pkcs11.so
  libnvidia-present.so libnvidia-ptxjitcompiler.so libnvidia-rtcore.so libnvidia-sandboxutils.so
  libnvidia-tls.so libnvidia-vksc-core.so libnvidia-wayland-client.so libnvoptix.so libvdpau_nvidia.so
  libnvidia-egl-gbm.so libnvidia-egl-wayland.so`
  .trim()
  .split(/\s+/)
  .map((name) => `/usr/lib/x86_64-linux-gnu/${name}.${DRIVER}`);
const OTHERS = [
  ...["nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-debugdump", "nvidia-smi"].map(
    (n) => `/usr/bin/${n}`,
  ),
  "/etc/vulkan/icd.d/nvidia_icd.json",
  "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
  "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
  "/usr/share/nvidia/nvoptix.bin",
  `/lib/firmware/nvidia/${DRIVER}/gsp_ga10x.bin`,
  `/lib/firmware/nvidia/${DRIVER}/gsp_tu10x.bin`,
];
const FILES = [...LIBRARIES, ...OTHERS];
const CONTROL = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
const OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

/** The kinds of the driver's devices, and of claims as a DRA driver names them. */
export const GPU = "nvidia.com/gpu";
export const CLAIM = "k8s.gpu.nvidia.com/claim";

/** A driver tree of small files and nodes that are no GPU's: what is mounted costs the same, whatever is in it. */
export function makeDriver(dir: string): void {
  for (const file of FILES) {
    fs.mkdirSync(path.join(dir, path.dirname(file)), { recursive: true });
    fs.writeFileSync(path.join(dir, file), `simulated ${file}\n`, { mode: 0o755 });
  }
  fs.mkdirSync(path.join(dir, "dev"));
  // The memory devices: null, zero, full, random, urandom.
  for (const [i, name] of ["nvidia0", ...CONTROL].entries()) {
    execFileSync("mknod", ["-m", "666", path.join(dir, "dev", name), "c", "1", String([3, 5, 7, 8, 9][i])]);
  }
}

function node(dir: string, name: string, from = name) {
  return { path: `/dev/${name}`, hostPath: path.join(dir, "dev", from) };
}

/**
 * As NVIDIA's generator writes it: the GPUs' nodes at the devices, everything else for all of them.
 * @param full also the nodes for graphics, the device `all`, and the hooks, which nothing here could run
 */
export function driverSpec(dir: string, gpus: number, full: boolean): Spec {
  const nodesOf = (i: number, graphics: boolean) =>
    [`nvidia${i}`, ...(graphics ? [`dri/card${i}`, `dri/renderD${128 + i}`] : [])].map((n) => node(dir, n, "nvidia0"));
  const devices = Array.from({ length: gpus }, (_, i): Device => {
    return { name: String(i), containerEdits: { deviceNodes: nodesOf(i, full) } };
  });
  const all = Array.from({ length: gpus }, (_, i) => nodesOf(i, false)).flat();
  if (full) devices.push({ name: "all", containerEdits: { deviceNodes: all } });
  const hook = (...args: string[]) => ({
    hookName: "createContainer",
    path: "/usr/bin/nvidia-cdi-hook",
    args: ["nvidia-cdi-hook", ...args],
    env: ["NVIDIA_CTK_DEBUG=false"],
  });
  const links = `
    cuda cudadebugger nvcuvid nvidia-allocator nvidia-encode nvidia-fbc nvidia-ml nvidia-nvvm nvidia-opencl
    nvidia-opticalflow nvidia-ptxjitcompiler nvoptix`
    .trim()
    .split(/\s+/)
    .map((name) => `lib${name}.so.1::/usr/lib/x86_64-linux-gnu/lib${name}.so`);
  return {
    cdiVersion: "0.5.0",
    kind: GPU,
    devices,
    containerEdits: {
      env: ["NVIDIA_VISIBLE_DEVICES=void"],
      deviceNodes: CONTROL.map((name) => node(dir, name)),
      mounts: FILES.map((file) => ({ hostPath: path.join(dir, file), containerPath: file, options: OPTIONS })),
      ...(full
        ? {
            hooks: [
              hook("create-symlinks", ...links.flatMap((link) => ["--link", link])),
              hook("enable-cuda-compat", `--host-driver-version=${DRIVER}`),
              hook("update-ldcache", "--folder", "/usr/lib/x86_64-linux-gnu"),
              hook("disable-device-node-modification"),
            ],
          }
        : {}),
    },
  };
}

/** One device, as the driver of a DRA node writes it for each claim. */
export function claimSpec(dir: string, name: string): Spec {
  const env = [`NVIDIA_CLAIM=${name}`, "NVIDIA_VISIBLE_DEVICES=void"];
  const deviceNodes = ["nvidia0", "nvidiactl", "nvidia-uvm"].map((n) => node(dir, n));
  return { cdiVersion: "0.5.0", kind: CLAIM, devices: [{ name, containerEdits: { env, deviceNodes } }] };
}

export function claimName(i: number): string {
  return `0d5a4f6e-7c1b-4c39-9a5e-${String(i).padStart(12, "0")}`;
}

/** Settings with one spec folder that holds the given files. */
export interface Scene {
  env: { SLUICE_CONFIG: string };
  cdi: string;
}

/** @param runtime the low-level runtime, if not the default */
export function makeScene(dir: string, specs: Record<string, string>, runtime?: string): Scene {
  const cdi = path.join(dir, "cdi");
  fs.mkdirSync(cdi, { recursive: true });
  for (const [name, text] of Object.entries(specs)) fs.writeFileSync(path.join(cdi, name), text);
  const config = path.join(dir, "config.toml");
  const lowLevel = runtime === undefined ? "" : `[runtime]\nruntimes = [${JSON.stringify(runtime)}]\n`;
  fs.writeFileSync(config, `${lowLevel}[cdi]\nspec_dirs = [${JSON.stringify(cdi)}]\n`);
  return { env: { SLUICE_CONFIG: config }, cdi };
}

export function yaml(spec: Spec): string {
  return dump(spec);
}

/** A file that keeps a config.json as the engine wrote it. */
const ORIGINAL = "config.json.original";

/** A bundle that is never started: dockerd's config.json of 12 KB, which asks for a device or for nothing. */
export function makeConfig(dir: string, device?: string): string {
  fs.mkdirSync(dir);
  const config = path.join(dir, ORIGINAL);
  const annotation = device === undefined ? "" : `"gpu.sluice.dev":${JSON.stringify(device)},`;
  const services = Array.from({ length: 20 }, (_, i) => `"MODEL_${i}_PORT=tcp://10.96.0.${i}:8443",`).join("");
  const text = dockerConfig
    .replace('"annotations":{', `"annotations":{${annotation}`)
    .replace('"env":[', `"env":[${services}`)
    .replace("NVIDIA_VISIBLE_DEVICES=all", device === undefined ? "NO_DEVICES=all" : "NVIDIA_VISIBLE_DEVICES=all");
  fs.writeFileSync(config, text);
  return dir;
}

/** Keeps a bundle's config.json, to be put back with `restore`. */
export function keepConfig(bundle: string): void {
  fs.copyFileSync(path.join(bundle, "config.json"), path.join(bundle, ORIGINAL));
}

/** The step of timer.c that gives a bundle the config.json that the engine wrote. */
export function restore(bundle: string): string[] {
  return ["copy", path.join(bundle, ORIGINAL), path.join(bundle, "config.json")];
}
