import type { Look } from "./look.ts";

/**
 * A MIG device: a compute instance in a GPU instance, and the numbers of the two capability nodes that open it
 * (reference sharing-kubernetes.md section 3).
 */
export interface MigDevice {
  /** Its place among the GPU's MIG devices, in the order of the instances: the second number of the name `0:1`. */
  readonly index: number;
  readonly gpuInstance: number;
  readonly computeInstance: number;
  /** Minors of `/dev/nvidia-caps/nvidia-cap<minor>`. */
  readonly gpuInstanceMinor: number;
  readonly computeInstanceMinor: number;
  /** No file tells it: absent where `nvidia-smi` was not asked, or does not know it. */
  readonly uuid?: string;
}

const CAPABILITIES = "/proc/driver/nvidia/capabilities";
const MINORS = "/proc/driver/nvidia-caps/mig-minors";

/** The driver's own table of minors, by the place of the capability: `gpu0/gi1/ci0/access`, `config`. */
export type MigMinors = (place: string) => number | undefined;

/** The table has thousands of lines, for any GPU that there could be: it is searched, not taken apart. */
export function readMigMinors(look: Look): MigMinors {
  const text = `\n${look.text(MINORS) ?? ""}\n`;
  return (place) => {
    const at = text.indexOf(`\n${place} `);
    if (at < 0) return undefined;
    const start = at + place.length + 2;
    const minor = text.slice(start, text.indexOf("\n", start));
    if (/^\d{1,9}$/.test(minor)) return Number(minor);
    look.note(MINORS, `it tells no number of ${place}`);
    return undefined;
  };
}

/**
 * The MIG devices of the GPU of this minor; `undefined` where it has no GPU instance. A device whose minor is not told
 * is left out, and noted.
 */
export function readMigDevices(
  look: Look,
  gpuMinor: number,
  minors: MigMinors,
  gpuIndex: number,
  uuids: ReadonlyMap<string, string>,
): MigDevice[] | undefined {
  const found: MigDevice[] = [];
  const gpu = `${CAPABILITIES}/gpu${gpuMinor}/mig`;
  const gpuInstances = instances(look, gpu, "gi");
  if (gpuInstances.length === 0) return undefined;
  for (const [gi, gpuInstance] of gpuInstances) {
    for (const [ci, computeInstance] of instances(look, `${gpu}/${gi}`, "ci")) {
      const gpuInstanceMinor = minorOf(look, `gpu${gpuMinor}`, gi, minors);
      const computeInstanceMinor = minorOf(look, `gpu${gpuMinor}`, `${gi}/${ci}`, minors);
      if (gpuInstanceMinor === undefined || computeInstanceMinor === undefined) continue;
      const index = found.length;
      const uuid = uuids.get(`${gpuIndex}:${index}`);
      found.push({
        index,
        gpuInstance,
        computeInstance,
        gpuInstanceMinor,
        computeInstanceMinor,
        ...(uuid === undefined ? {} : { uuid }),
      });
    }
  }
  return found;
}

/** The UUIDs of MIG devices, by `<GPU>:<device>`, from what `nvidia-smi -L` prints. Lines of other forms are passed over. */
export function readMigUuids(smi: string): Map<string, string> {
  const uuids = new Map<string, string>();
  let gpu: string | undefined;
  for (const line of smi.split("\n")) {
    const index = /^GPU (\d{1,4}):/.exec(line)?.[1];
    if (index !== undefined) gpu = index;
    else if (line !== "" && !line.startsWith(" ")) gpu = undefined;
    const mig = /^ +MIG .* Device +(\d{1,4}): \(UUID: (MIG-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\)$/.exec(line);
    if (mig !== null && gpu !== undefined) uuids.set(`${gpu}:${mig[1]}`, mig[2] as string);
  }
  return uuids;
}

function instances(look: Look, folder: string, prefix: string): [name: string, id: number][] {
  return look
    .names(folder)
    .filter((name) => name.startsWith(prefix) && /^\d{1,4}$/.test(name.slice(prefix.length)))
    .map((name) => [name, Number(name.slice(prefix.length))]);
}

/** The capability's own file says it; the driver's table says it for those that are not there too. */
function minorOf(look: Look, gpu: string, place: string, minors: MigMinors): number | undefined {
  const file = `${CAPABILITIES}/${gpu}/mig/${place}/access`;
  const told = /^DeviceFileMinor: (\d{1,9})$/m.exec(look.text(file) ?? "")?.[1];
  const minor = told === undefined ? minors(`${gpu}/${place}/access`) : Number(told);
  if (minor === undefined) look.note(file, "it does not tell its device's minor, nor does mig-minors");
  return minor;
}
