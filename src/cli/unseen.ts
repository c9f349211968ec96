import type { Unseen } from "../host/look.ts";
import { printable } from "../sys/error.ts";

/** As many as help; the rest are of the same cause, mostly. */
const SHOWN = 5;

/** Lines that tell a person what of a machine could not be seen. */
export function unseenLines(all: readonly Unseen[], euid: number): string[] {
  const lines = all.slice(0, SHOWN).map(({ path, reason }) => `not seen: ${printable(path)} (${reason})`);
  if (all.length > SHOWN) lines.push(`not seen: ${all.length - SHOWN} more (--json has them)`);
  const denied = all.some(({ reason }) => reason === "EACCES" || reason === "EPERM");
  if (denied && euid !== 0) lines.push("run it as root to see all");
  return lines;
}
