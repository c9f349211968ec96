/** What sluiced says of itself: to `/readyz`, to systemd, and to whoever asks for the status on its socket. */

export interface NriStatus {
  /**
   * `off`: not wanted. `waiting`: not connected, tried again and again. `registered`: the engine asks us. The rest is on
   * the way there.
   */
  readonly state: "off" | "waiting" | "connected" | "registered";
  /** The engine, as it names itself: `containerd v2.1.4`. */
  readonly engine?: string;
  /** Why it is waiting. */
  readonly why?: string;
}

export interface Status {
  /** With the digest of the sources. */
  readonly version: string;
  readonly pid: number;
  /** Seconds. */
  readonly uptime: number;
  /** What is missing for it to do its work, for a person; empty where it is ready. */
  readonly lacks: readonly string[];
  readonly nri: NriStatus;
  /** By the names of the metrics. */
  readonly counts: Readonly<Record<string, number>>;
}

/** What the NRI still lacks, or nothing. */
export function lackOf({ state, why }: NriStatus): string[] {
  if (state === "off" || state === "registered") return [];
  return [`not registered with the engine's NRI${why === undefined ? "" : `: ${why}`}`];
}

/** One line, for `systemctl status`. */
export function lineOf(nri: NriStatus): string {
  if (nri.state === "off") return "answering the other doors; no NRI plugin";
  return nri.state === "registered" ? `NRI plugin of ${nri.engine ?? "the engine"}` : (lackOf(nri)[0] as string);
}
