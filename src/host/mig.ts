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
}

const CAPABILITIES = "/proc/driver/nvidia/capabilities";
const MINORS = "/proc/driver/nvidia-caps/mig-minors";

/** The driver's own table of minors, by the place of the capability: `gpu0/gi1/ci0/access`. */
export function readMigMinors(look: Look): Map<string, number> {
  const minors = new Map<string, number>();
  const text = look.text(MINORS);
  if (text === undefined) return minors;
  for (const line of text.split("\n")) {
    const match = /^(config|monitor|gpu\d{1,4}\/gi\d{1,4}\/(?:ci\d{1,4}\/)?access) (\d{1,9})$/.exec(line);
    if (match === null) look.note(MINORS, "it has lines of another form");
    else minors.set(match[1] as string, Number(match[2]));
    if (match === null) break;
  }
  return minors;
}

/**
 * The MIG devices of the GPU of this minor; `undefined` where it has no GPU instance. A device whose minor is not told
 * is left out, and noted.
 */
export function readMigDevices(
  look: Look,
  gpuMinor: number,
  minors: ReadonlyMap<string, number>,
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
      found.push({ index: found.length, gpuInstance, computeInstance, gpuInstanceMinor, computeInstanceMinor });
    }
  }
  return found;
}

function instances(look: Look, folder: string, prefix: string): [name: string, id: number][] {
  return look
    .names(folder)
    .filter((name) => name.startsWith(prefix) && /^\d{1,4}$/.test(name.slice(prefix.length)))
    .map((name) => [name, Number(name.slice(prefix.length))]);
}

/** The capability's own file says it; the driver's table says it for those that are not there too. */
function minorOf(look: Look, gpu: string, place: string, minors: ReadonlyMap<string, number>): number | undefined {
  const file = `${CAPABILITIES}/${gpu}/mig/${place}/access`;
  const told = /^DeviceFileMinor: (\d{1,9})$/m.exec(look.text(file) ?? "")?.[1];
  const minor = told === undefined ? minors.get(`${gpu}/${place}/access`) : Number(told);
  if (minor === undefined) look.note(file, "it does not tell its device's minor, nor does mig-minors");
  return minor;
}
