/**
 * /run/sluice/sluiced.sock, on which the native doors, which have no gRPC, ask what the kubelet allocated. One question a
 * connection, one answer, both a line of JSON. Only root (or the rootless user) can connect.
 */

import * as fs from "node:fs";
import * as net from "node:net";
import type { Evidence } from "../policy/allocation.ts";
import { quote, SluiceError } from "../sys/error.ts";
import { type EvidenceQuestion, parseQuestion, type Question, VERSION } from "./question.ts";
import type { Status } from "./status.ts";

export interface Answers {
  /** Within a deadline of its own. Never rejects. */
  evidence(question: EvidenceQuestion): Promise<Evidence>;
  status(): Promise<Status>;
  /** Of each question what came of it: the answer's first word, or an error's code. For the metrics. */
  asked(ask: Question["ask"] | "none", outcome: string): void;
}

/** Bytes of a question. */
const MAX_QUESTION = 64 << 10;
/** Milliseconds in which a peer must have asked, and once answered, must have gone. */
const PATIENCE = 5000;
/** More at once are closed unanswered: whoever asks for a device is refused then, and tried again by the kubelet. */
const MAX_CONNECTIONS = 1024;

export interface ListeningSocket {
  readonly path: string;
  /** Takes no more questions; the socket is gone, and those that wait for an answer are let down. */
  close(): void;
}

/**
 * Listens. What a killed daemon left at the path is replaced; so the caller must be sure that none lives (lock.ts).
 *
 * @throws SluiceError E_DAEMON_SOCKET
 */
export async function listen(path: string, answers: Answers): Promise<ListeningSocket> {
  const open = new Set<net.Socket>();
  // A peer that has asked may close its half, and still gets its answer.
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket);
    socket.on("close", () => open.delete(socket));
    converse(socket, answers);
  });
  server.maxConnections = MAX_CONNECTIONS;
  try {
    removeLeftover(path);
    await bind(server, path);
  } catch (thrown) {
    if (thrown instanceof SluiceError) throw thrown;
    const why = (thrown as Error).message;
    throw new SluiceError("E_DAEMON_SOCKET", `cannot listen on ${path}: ${why}`, "make its folder writable", thrown);
  }
  return {
    path,
    close: () => {
      server.close(); // removes the file
      for (const socket of open) socket.destroy();
    },
  };
}

function removeLeftover(path: string): void {
  const there = fs.lstatSync(path, { throwIfNoEntry: false });
  if (there === undefined) return;
  if (!there.isSocket()) {
    throw new SluiceError("E_DAEMON_SOCKET", `${path} is there, and is no socket`, "find out whose it is; remove it");
  }
  fs.unlinkSync(path);
}

function bind(server: net.Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.once("listening", () => resolve());
    // The file is made before listen returns: never for a moment can another user connect.
    const umask = process.umask(0o177);
    try {
      server.listen({ path });
    } finally {
      process.umask(umask);
    }
  });
}

function converse(socket: net.Socket, answers: Answers): void {
  let chunks: Buffer[] | undefined = [];
  let size = 0;
  socket.on("error", () => {}); // a peer that went away: "close" follows
  let deadline = setTimeout(() => socket.destroy(), PATIENCE);
  socket.on("close", () => clearTimeout(deadline));

  const reply = (answer: object): void => {
    if (socket.destroyed) return;
    socket.end(`${JSON.stringify({ v: VERSION, ...answer })}\n`);
    deadline = setTimeout(() => socket.destroy(), PATIENCE);
  };
  const ask = (line: Buffer): void => {
    chunks = undefined; // what follows the question is read, so that the end is seen, and ignored
    clearTimeout(deadline);
    let question: Question;
    try {
      question = parseQuestion(textOf(line));
    } catch (thrown) {
      if (!(thrown instanceof SluiceError)) throw thrown;
      answers.asked("none", thrown.code);
      reply({ error: thrown.message });
      return;
    }
    if (question.ask === "status") {
      answers.asked("status", "answered");
      answers.status().then(reply, () => socket.destroy());
      return;
    }
    answers.evidence(question).then(
      (evidence) => {
        answers.asked("evidence", "unavailable" in evidence ? "unavailable" : "answered");
        reply(evidence);
      },
      () => socket.destroy(),
    );
  };
  const refuse = (what: string): void => {
    chunks = undefined;
    clearTimeout(deadline);
    answers.asked("none", "E_DAEMON_QUESTION");
    reply({ error: new SluiceError("E_DAEMON_QUESTION", what, "send one line of JSON").message });
  };

  socket.on("data", (chunk: Buffer) => {
    if (chunks === undefined) return;
    const end = chunk.indexOf(0x0a);
    const piece = end < 0 ? chunk : chunk.subarray(0, end);
    size += piece.length;
    if (size > MAX_QUESTION) return refuse(`the question has more than ${MAX_QUESTION >> 10} KiB`);
    chunks.push(piece);
    if (end >= 0) ask(Buffer.concat(chunks));
  });
  socket.on("end", () => {
    if (chunks !== undefined) refuse("the question has no line break at its end");
  });
}

function textOf(line: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(line);
  } catch {
    throw new SluiceError(
      "E_DAEMON_QUESTION",
      `${quote(line.toString("latin1"))} is not UTF-8`,
      "send one line of JSON",
    );
  }
}
