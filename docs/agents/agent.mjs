// An agent in JavaScript. It runs each line of a task's description as a shell command.
// Usage: node agent.mjs <path of workspace.binpb>
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import grpc from "@grpc/grpc-js";
import { loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";

const spec = JSON.parse(readFileSync(0, "utf8"));
const options = { keepCase: true, enums: String, defaults: true };
const protos = loadFileDescriptorSetFromBuffer(readFileSync(process.argv[2]), options);
const { AgentService, RuntimeService } = grpc.loadPackageDefinition(protos).evershell.agent.v1;
const addresses = spec.runtime_addresses;
const [trusted, key, certificate] = [spec.tls_trusted, spec.tls_key, spec.tls_certificate].map(Buffer.from);
const isTls = certificate.length > 0;
// Each side trusts one authority, and checks the name in the certificate of the other side.
const channel = isTls ? grpc.credentials.createSsl(trusted, key, certificate) : grpc.credentials.createInsecure();
const listener = isTls
  ? grpc.ServerCredentials.createSsl(trusted, [{ private_key: key, cert_chain: certificate }], true)
  : grpc.ServerCredentials.createInsecure();
const named = isTls ? { "grpc.ssl_target_name_override": "control-plane.evershell.internal" } : {};
const workers = addresses.map((address) => new RuntimeService(address, channel, named));
const cancelled = new Map(); // by task id: when to interrupt its iteration, in ms; Infinity: never
let offset = 0, leaseUntil = Infinity, leaseLength = 1000, child = null;
let current = null, startedAt = 0, finished = new Set();

const now = () => Date.now() + offset;
const minute = () => Math.floor(now() / 60_000);
const code = (secret, at) => createHmac("sha256", Buffer.from(secret, "hex")).update(`${at}`).digest("hex");

// Calls the control plane until it has answered, and obeys its directive.
async function call(method, request) {
  for (let attempt = 0; ; attempt++) {
    const sent = Date.now(), at = minute(), metadata = new grpc.Metadata();
    const token = `${spec.workspace_id}.${spec.epoch}.${at}.${code(spec.runtime_secret, at)}`;
    metadata.set("authorization", `Bearer ${token}`);
    const [error, reply] = await new Promise((resolve) => {
      const options = { deadline: sent + 5000 };
      workers[attempt % workers.length][method](request, metadata, options, (...both) => resolve(both));
    });
    if (!error) return obey(reply.directive, sent);
    const time = error.metadata?.get("x-evershell-time")[0];
    if (time) offset = Number(time) * 1000 - Date.now();
    if (error.code === grpc.status.UNAUTHENTICATED && !time) process.exit(3);
    await sleep(200);
  }
}

function obey({ fenced, task, lease_ms, lease_length_ms }, sent) {
  if (fenced) end();
  if (Number(lease_length_ms)) leaseLength = Number(lease_length_ms);
  // The margin is for ending the tools before the lease is over.
  if (Number(lease_ms)) leaseUntil = sent + Number(lease_ms) - 0.2 * leaseLength;
  // A reply to a call from before the task's start may not have the task yet.
  if (!task && current && sent > startedAt) interrupt();
  if (task) start(task);
}

function start(task) {
  if (task.cancellation) cancel(task.task_id, task.cancellation);
  if (task.task_id === current || finished.has(task.task_id)) return;
  if (current) interrupt();
  run(task);
}

function cancel(id, { force_after_ms }) {
  const at = force_after_ms == null ? Infinity : Date.now() + Number(force_after_ms);
  cancelled.set(id, Math.min(at, cancelled.get(id) ?? Infinity));
}

const interrupt = () => child && process.kill(-child.pid, "SIGKILL");
const end = () => (interrupt(), process.exit(0));

async function run({ task_id, description, max_iterations, iterations }) {
  [current, startedAt] = [task_id, Date.now()];
  const commit = (event) => call("CommitEvents", { task_id, events: [event] });
  await commit({ task_started: {} });
  let forced = false, number = iterations;
  for (const line of description.split("\n").slice(iterations, max_iterations)) {
    if (cancelled.has(task_id)) break;
    const shell_call = { name: "shell", arguments: JSON.stringify({ command: line }) };
    const started_calls = [{ ...shell_call, arguments: shell_call.arguments.slice(0, 1024) }];
    await call("CommitEvents", { task_id, open_iteration: { number: number + 1, model_call: {}, started_calls } });
    const result = await shell(line);
    forced = result.status === "interrupted";
    const tool_call = { ...shell_call, result };
    await commit({ iteration_completed: { number: ++number, model_call: {}, tool_call } });
  }
  finished.add(task_id);
  const status = cancelled.has(task_id) ? "cancelled" : "completed";
  await commit({ task_ended: { status, result: `Ran ${number} commands.`, forced } });
  if (current === task_id) current = null;
}

async function shell(line) {
  const tool = (child = spawn("/bin/sh", ["-c", line], { detached: true, cwd: spec.files_dir || "." }));
  let output = "";
  tool.stdout.on("data", (part) => (output = (output + part).slice(0, 65_536)));
  const exit_code = await new Promise((resolve) => tool.on("close", resolve));
  child = null;
  return exit_code === null ? { status: "interrupted", output } : { status: "exited", exit_code, output };
}

// A token of the minute before or after is accepted too, because clocks differ.
const isValid = (token) => [-1, 0, 1].some((skew) => token === code(spec.signal_secret, minute() + skew));

function acknowledge({ id, start_task, cancel_task }) {
  let known = false;
  if (start_task) {
    // While the agent works on another task, it does not start this one: the next directive decides.
    known = [null, start_task.task_id].includes(current) || finished.has(start_task.task_id);
    if (known) start(start_task);
  } else if (cancel_task) {
    known = cancel_task.task_id === current;
    cancel(cancel_task.task_id, cancel_task.cancellation ?? {});
  }
  return { id, known, task_id: current ?? "" };
}

const server = new grpc.Server({ "grpc.max_connection_age_ms": 300_000, "grpc.max_connection_age_grace_ms": 2_000 });
server.addService(AgentService.service, {
  Signals(stream) {
    const refuse = () => {
      stream.removeAllListeners("data");
      stream.emit("error", { code: grpc.status.UNAUTHENTICATED, details: "no valid token" });
    };
    if (!isValid(`${stream.metadata.get("authorization")[0]}`.slice("Bearer ".length))) return refuse();
    stream.on("data", (signal) => (isValid(signal.token) ? stream.write(acknowledge(signal)) : refuse()));
    stream.on("end", () => stream.end());
  },
});
server.bindAsync(`${spec.listen_host}:0`, listener, async (error, port) => {
  if (error) throw error;
  process.on("SIGTERM", end);
  setInterval(() => Date.now() > leaseUntil && end(), 100);
  setInterval(() => Date.now() >= (cancelled.get(current) ?? Infinity) && interrupt(), 100);
  await call("Register", { address: `${spec.listen_host}:${port}`, pid: process.pid });
  for (;;) {
    await sleep(leaseLength / 6);
    await call("Heartbeat", { task_id: current ?? "", phase: child ? "tool_call" : "phase_unspecified" });
  }
});
