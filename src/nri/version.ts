/** Which version of NRI a runtime speaks: what it passes over in silence, and what it refuses, depends on that. */

/** 0.10 is { major: 0, minor: 10 }. */
export interface NriVersion {
  readonly major: number;
  readonly minor: number;
}

/** Whether it is 0.`minor` or later. */
export function isAtLeast(version: NriVersion, minor: number): boolean {
  return version.major > 0 || version.minor >= minor;
}

export function versionText({ major, minor }: NriVersion): string {
  return `${major}.${minor}`;
}

/** From which release on a runtime has which 0.x: the versions in the go.mod of each tag. The first that fits counts. */
const RELEASES: Readonly<Record<string, readonly (readonly [release: readonly number[], minor: number])[]>> = {
  containerd: [
    [[2, 3, 0], 12],
    [[2, 2, 1], 11],
    [[2, 2, 0], 10],
    [[1, 7, 26], 8], // 2.0 and 2.1 too
    [[1, 7, 14], 6],
    [[1, 7, 7], 4],
  ],
  "cri-o": [
    [[1, 37, 0], 12],
    [[1, 35, 0], 11],
    [[1, 34, 0], 10],
    [[1, 32, 0], 9],
    [[1, 30, 0], 6],
    [[1, 29, 0], 5],
  ],
  docker: [
    [[29, 5, 0], 12],
    [[29, 2, 0], 11],
  ],
};

/** What every runtime has that speaks NRI at all, and an unknown one is taken to have. */
const OLDEST = 3;

/** Since when a runtime tells its version. */
const TOLD = 12;

/**
 * @param told NRI's version as the runtime tells it, from 0.12 on. A number below that comes from a build that does not
 * know its own (Go's `replace`).
 * @param name of the runtime: `containerd`, `cri-o`, `docker`
 * @param release like `v2.1.4`, `2.1.9+unknown`, `1.7.24~ds1`
 */
export function nriVersion(told: string, name: string, release: string): NriVersion {
  if (told !== "") {
    const [major = 0, minor = 0] = numbersIn(told) ?? [];
    return isAtLeast({ major, minor }, TOLD) ? { major, minor } : { major: 0, minor: TOLD };
  }
  const numbers = numbersIn(release);
  const releases = Object.hasOwn(RELEASES, name) ? RELEASES[name] : undefined;
  if (numbers === undefined || releases === undefined) return { major: 0, minor: OLDEST };
  // A pre-release may have what came before.
  const patch = isPreRelease(release) ? -1 : 0;
  const found = releases.find(([since]) => compare([numbers[0], numbers[1], numbers[2] + patch], since) >= 0);
  return { major: 0, minor: found?.[1] ?? OLDEST };
}

function numbersIn(version: string): [number, number, number] | undefined {
  const found = /^v?(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?/.exec(version.trim());
  return found === null ? undefined : [Number(found[1]), Number(found[2]), Number(found[3] ?? 0)];
}

function isPreRelease(version: string): boolean {
  return /^v?[\d.]+[-~](?:alpha|beta|rc|pre|dev)/i.test(version.trim());
}

function compare(a: readonly number[], b: readonly number[]): number {
  const at = b.findIndex((number, i) => number !== a[i]);
  return at < 0 ? 0 : (a[at] as number) - (b[at] as number);
}
