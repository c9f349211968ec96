import type { Evidence } from "../policy/allocation.ts";
import type { DaemonSettings } from "../policy/config.ts";
import { BUILD } from "../sys/version.ts";
import { type HttpServer, serve } from "./http.ts";
import { takeLock } from "./lock.ts";
import type { Log } from "./logs.ts";
import type { Metrics } from "./metrics.ts";
import { Notifier } from "./notify.ts";
import type { EvidenceQuestion } from "./question.ts";
import { type ListeningSocket, listen } from "./socket.ts";
import { lackOf, lineOf, type NriStatus, type Status } from "./status.ts";

/** Milliseconds that systemd, and with it the kubelet, waits for the engine to take us as its NRI plugin. */
const READY_PATIENCE = 15_000;
/** Milliseconds that systemd has to hear that we stop. */
const STOP_PATIENCE = 500;

export interface DaemonParts {
  readonly settings: DaemonSettings;
  /** `/run/sluice` */
  readonly stateDir: string;
  readonly log: Log;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly metrics: Metrics;
  /** What the kubelet says, within a deadline. Never rejects. */
  evidence(question: EvidenceQuestion): Promise<Evidence>;
}

/** What stands around the doors: one at a time, its socket, its metrics, and what it says of itself. */
export class Daemon {
  readonly #parts: DaemonParts;
  readonly #notifier: Notifier;
  #socket: ListeningSocket | undefined;
  #http: HttpServer | undefined;
  #nri: NriStatus = { state: "off" };
  #readyTimer: NodeJS.Timeout | undefined;
  #saidReady = false;

  constructor(parts: DaemonParts) {
    this.#parts = parts;
    this.#notifier = new Notifier(parts.env, parts.log);
  }

  /** @throws SluiceError E_DAEMON_* */
  async start(nri: NriStatus): Promise<void> {
    const { settings, stateDir, log } = this.#parts;
    this.#nri = nri;
    takeLock(`${stateDir}/sluiced.lock`);
    if (settings.metricsAddress !== "") {
      this.#http = await serve(settings.metricsAddress, {
        metrics: () => this.#parts.metrics.page(),
        lacks: () => this.lacks(),
      });
      log.info({ address: this.#http.address }, "serving metrics");
    }
    this.#socket = await listen(`${stateDir}/sluiced.sock`, {
      evidence: (question) => this.#parts.evidence(question),
      status: () => this.status(),
      asked: (ask, outcome) => this.#parts.metrics.asked(ask, outcome),
    });
    log.info({ socket: this.#socket.path }, "answering questions");
    // A node whose engine has no NRI shall come up all the same: its kubelet waits for this service.
    this.#readyTimer = setTimeout(() => this.#sayReady(), READY_PATIENCE);
    this.#tell();
  }

  nri(nri: NriStatus): void {
    if (nri.state === "registered" && this.#nri.state !== "registered") this.#parts.metrics.registered();
    if (nri.state !== "registered" && this.#nri.state === "registered") this.#parts.metrics.disconnected();
    this.#nri = nri;
    this.#tell();
  }

  lacks(): readonly string[] {
    return [...(this.#socket === undefined ? ["not answering on its socket yet"] : []), ...lackOf(this.#nri)];
  }

  async status(): Promise<Status> {
    return {
      version: BUILD,
      pid: process.pid,
      uptime: Math.floor(process.uptime()),
      lacks: this.lacks(),
      nri: this.#nri,
      counts: await this.#parts.metrics.counts(),
    };
  }

  /** Closes what is open; resolved once systemd knows, or does not listen. */
  async stop(): Promise<void> {
    clearTimeout(this.#readyTimer);
    const told = this.#notifier.stopping();
    this.#socket?.close();
    this.#http?.close();
    await Promise.race([told, new Promise((resolve) => setTimeout(resolve, STOP_PATIENCE))]);
  }

  #tell(): void {
    if (this.#socket === undefined) return; // not started yet
    if (this.lacks().length === 0) this.#sayReady();
    if (this.#saidReady) this.#notifier.status(lineOf(this.#nri));
  }

  #sayReady(): void {
    if (this.#saidReady) return;
    this.#saidReady = true;
    clearTimeout(this.#readyTimer);
    this.#parts.log.info({ lacks: this.lacks() }, "started");
    void this.#notifier.ready(lineOf(this.#nri));
  }
}
