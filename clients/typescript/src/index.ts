/** The client of evershell, and the messages of the API. */
export {
  type CancelAndWaitOptions,
  Client,
  type Credential,
  type OrganizationEvent,
  type WatchOptions,
  type WatchOrganizationOptions,
} from "./client.js";
export { CallError, type ErrorCode, TaskNotEndedError } from "./errors.js";
// begin: written by `make gen`
export * from "./gen/evershell/workspace/v1/audit_pb.js";
export * from "./gen/evershell/workspace/v1/caller_pb.js";
export * from "./gen/evershell/workspace/v1/event_pb.js";
export * from "./gen/evershell/workspace/v1/hold_pb.js";
export * from "./gen/evershell/workspace/v1/task_pb.js";
export * from "./gen/evershell/workspace/v1/webhook_pb.js";
export * from "./gen/evershell/workspace/v1/workspace_pb.js";
export * from "./gen/evershell/workspace/v1/workspace_service_pb.js";
// end: written by `make gen`
