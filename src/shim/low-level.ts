import { SluiceError } from "../sys/error.ts";
import type { Sys } from "../sys/sys.ts";

/** Where programs are looked for when our environment has no PATH, as when containerd's shim was started by hand. */
const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/**
 * The path of the runtime that creates the containers: the first of `names` that is there, an absolute path as it
 * stands, a name looked up in PATH. A file that is Sluice itself (linked there as "runc", say) is passed over: we
 * would call ourselves without end.
 *
 * @throws SluiceError E_RUNTIME_NOT_FOUND
 */
export function findRuntime(sys: Sys, names: readonly string[]): string {
  const path = sys.env("PATH") ?? DEFAULT_PATH;
  const self = sys.stat("/proc/self/exe")?.stamp;
  for (const name of names) {
    const places = name.startsWith("/") ? [name] : path.split(":").map((dir) => `${dir || "."}/${name}`);
    for (const place of places) {
      const stat = sys.stat(place);
      if (stat?.kind === "file" && (stat.mode & 0o111) !== 0 && stat.stamp !== self) return place;
    }
  }
  throw new SluiceError(
    "E_RUNTIME_NOT_FOUND",
    `none of the low-level runtimes ${names.join(", ")} is there (PATH is ${path})`,
    "install runc or crun, or set runtime.runtimes in the settings to the path of one",
  );
}
