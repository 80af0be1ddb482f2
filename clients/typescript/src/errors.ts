import { type JsonObject, fromJson, getOption } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  type Error as ErrorMessage,
  type ErrorDetails,
  ErrorDetailsSchema,
  Error_ErrorCode,
  Error_ErrorCodeSchema,
  rule,
} from "./gen/evershell/workspace/v1/error_pb.js";
import type { CancelTaskResponse } from "./gen/evershell/workspace/v1/workspace_service_pb.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";

/** The closed set of error codes of error.proto. */
export type ErrorCode = Exclude<keyof typeof Error_ErrorCode, "error_code_unspecified">;

/**
 * A call has failed. `code` says why: `error.code === "workspace_busy"`.
 *
 * `isFromService` is false if the service did not describe the failure, for example because the
 * connection broke. Such a call may or may not have taken effect.
 */
export class CallError extends Error {
  override readonly name = "CallError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly details: ErrorDetails = detailsOf({}),
    readonly requestId = "",
    readonly isFromService = true,
    cause?: unknown,
  ) {
    super(message, { cause });
  }

  /** Converts what a call of Connect has thrown. */
  static from(thrown: unknown): CallError {
    const error = ConnectError.from(thrown);
    if (error.cause instanceof CallError) return error.cause;
    const [info] = error.findDetails(ErrorInfoSchema);
    const [request] = error.findDetails(RequestInfoSchema);
    const id = request?.requestId || error.metadata.get("x-request-id") || "";
    const code = info?.reason.toLowerCase() ?? "";
    return isErrorCode(code)
      ? new CallError(code, error.rawMessage, statusDetails(error), id, true, thrown)
      : new CallError(codeOf(error), error.rawMessage, undefined, id, info !== undefined, thrown);
  }

  /** Converts the error in the last message of a stream. */
  static ofStream({ code, message, details, requestId }: ErrorMessage): CallError {
    const name = Error_ErrorCode[code] ?? "";
    return new CallError(isErrorCode(name) ? name : "internal", message, detailsOf(details ?? {}), requestId);
  }
}

/** The cancellation is recorded, but the task did not end within the time that the caller waited. */
export class TaskNotEndedError extends Error {
  override readonly name = "TaskNotEndedError";

  constructor(readonly result: CancelTaskResponse) {
    super(`The cancellation of task ${result.taskId} is recorded, but the task has not ended in time.`);
  }
}

/** A newer service may have codes that this client does not know. */
function isErrorCode(name: string): name is ErrorCode {
  return name !== "error_code_unspecified" && name in Error_ErrorCode && Number.isNaN(Number(name));
}

/** The error code that has the name of the gRPC code, or else the fallback for this gRPC code. */
function codeOf(error: ConnectError): ErrorCode {
  // `fetch` has failed, or the stream has broken off, without an error from the service.
  const isBroken = error.code === Code.Unknown && error.cause !== undefined;
  if (isBroken || error.code === Code.DataLoss) return "unavailable";
  const name = (Code[error.code] ?? "").replace(/(?<=.)[A-Z]/g, "_$&").toLowerCase();
  if (isErrorCode(name)) return name;
  const fallback = Error_ErrorCodeSchema.values.find((value) => {
    const { grpc, fallback } = getOption(value, rule);
    return fallback && Number(grpc) === Number(error.code);
  });
  return (fallback?.name as ErrorCode | undefined) ?? "internal";
}

function detailsOf(json: JsonObject): ErrorDetails {
  return fromJson(ErrorDetailsSchema, json, { ignoreUnknownFields: true });
}

/** The details of a status, in which lists and booleans are text. */
function statusDetails(error: ConnectError): ErrorDetails {
  const details: JsonObject = {};
  for (const { metadata } of error.findDetails(ErrorInfoSchema)) Object.assign(details, metadata);
  if (details.required) details.required = String(details.required).split(",");
  if (details.intent_recorded) details.intent_recorded = details.intent_recorded === "true";
  for (const { fieldViolations } of error.findDetails(BadRequestSchema)) {
    details.fields = Object.fromEntries(fieldViolations.map((each) => [each.field, each.description]));
  }
  for (const { retryDelay } of error.findDetails(RetryInfoSchema)) {
    details.retry_after_seconds = Math.ceil(Number(retryDelay?.seconds) + (retryDelay?.nanos ?? 0) / 1e9);
  }
  return detailsOf(details);
}
