import type { Look } from "./look.ts";

/** Where NVIDIA's driver tells of itself and its GPUs. */
export const PROC = "/proc/driver/nvidia";

const VERSION = /^\d{2,4}(?:\.\d{1,4}){1,3}$/;

/**
 * The version of NVIDIA's kernel module that is loaded: `580.65.06`. The open and the closed module say it in different
 * words, and sysfs has it of both. In a file of its own, since a container's start needs no more of the driver.
 */
export function readDriverVersion(look: Look): string | undefined {
  const module = look.text("/sys/module/nvidia/version");
  if (module !== undefined && VERSION.test(module)) return module;
  const line = /^NVRM version: .*?(?:Module|x86_64|aarch64)\s+(\d[\d.]*)\s/m.exec(
    look.text(`${PROC}/version`) ?? "",
  )?.[1];
  return line !== undefined && VERSION.test(line) ? line : undefined;
}
