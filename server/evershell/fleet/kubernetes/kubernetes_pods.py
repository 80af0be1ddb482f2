"""Pods on Kubernetes: one pod for each epoch of a workspace, and a volume for its files.

Two watches maintain copies of the pods and of the volume claims. The synchronous methods read these
copies. The claim of a workspace records which pod was started last, so every controller knows this
even if the pod is gone.
"""

import asyncio
import errno
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import httpx2
import structlog

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.fleet.kubernetes import objects, pod_states
from evershell.fleet.kubernetes.api import Api, ApiError, UnreachableError, connect
from evershell.fleet.kubernetes.cache import Cache
from evershell.fleet.kubernetes.objects import Object, PodTemplate
from evershell.pod.spec import PodSpec

log = structlog.get_logger()

_PODS, _CLAIMS, _SECRETS = "pods", "persistentvolumeclaims", "secrets"
_NOT_FOUND, _CONFLICT = 404, 409
# How long a program waits for the API server when it starts or when a term of leadership begins.
_SYNC_SECONDS = 10.0
# The shortest grace period. With 0, the API server would remove the pod without asking its kubelet,
# and nobody would know whether the pod has ended.
_SHORTEST_GRACE_SECONDS = 1


class KubernetesPods:
    """Implements Pods with a cluster."""

    def __init__(
        self,
        api: Api,
        template: PodTemplate,
        spec_for: Callable[[AgentIdentity], PodSpec],
        *,
        run_id: str,
        start_seconds: float,
        end_seconds: float,
    ) -> None:
        """Only `open` calls this.

        `spec_for` makes the spec of an agent, without long-lived secrets. `start_seconds` is how
        long a start waits for an API server that does not answer, and `end_seconds` is how long
        `end` waits for the cluster's confirmation after the grace period.
        """
        self._api = api
        self._template = template
        self._spec_for = spec_for
        # Pods survive a restart of the control plane, so a run lasts as long as the namespace.
        self.run_id = run_id
        self._start_seconds = start_seconds
        self._end_seconds = end_seconds
        self._pods = Cache(
            api,
            _PODS,
            changed=self._note_change,
            removed=self._note_removal,
            refreshed=self._wake_all,
        )
        self._claims = Cache(api, _CLAIMS, changed=self._wake, refreshed=self._wake_all)
        # The names of the known pods, by workspace id.
        self._names: dict[str, set[str]] = {}
        # By workspace id, the event that is set at the next change of the workspace's objects.
        self._changes: dict[str, asyncio.Event] = {}
        # The epochs of pods that disappeared before the kubelet confirmed their end, by workspace
        # id. Epochs before the epoch of a living pod are forgotten.
        self._unconfirmed: dict[str, set[int]] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        namespace: str,
        template: PodTemplate,
        spec_for: Callable[[AgentIdentity], PodSpec],
        *,
        start_seconds: float = 30.0,
        end_seconds: float = 20.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> AsyncIterator["KubernetesPods"]:
        """Opens the pods of a namespace.

        An empty `namespace` means the namespace of the kubeconfig or service account. Raises
        NotConfiguredError, ApiError, UnreachableError.
        """
        async with connect(namespace, objects.MANAGED_BY, transport) as api:
            namespace_object = await api.read_namespace(_SYNC_SECONDS)
            pods = cls(
                api,
                template,
                spec_for,
                run_id=namespace_object["metadata"]["uid"],
                start_seconds=start_seconds,
                end_seconds=end_seconds,
            )
            following = [
                asyncio.create_task(cache.run(), name=f"watch-{name}")
                for name, cache in ((_PODS, pods._pods), (_CLAIMS, pods._claims))
            ]
            try:
                yield pods
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)

    async def sync(self) -> None:
        """Implements Pods.

        Returns even if the API server does not answer. Until it does, every pod counts as started
        and alive, so that no second pod is started. Lost agents are recognized by their leases.
        """
        for cache in (self._pods, self._claims):
            cache.expect_changes()
        try:
            await asyncio.gather(
                *(cache.refresh(_SYNC_SECONDS) for cache in (self._pods, self._claims))
            )
        except (ApiError, UnreachableError) as error:
            log.warning("pods_unknown", problem=str(error))

    def was_started(self, workspace: Workspace) -> bool:
        if not self._is_current:
            return True
        # Reads both records, because either the pod or the claim may be gone.
        records = (
            self._claims.get(objects.claim_name(workspace.id)),
            self._pods.get(objects.pod_name(workspace.id, workspace.epoch)),
        )
        return objects.started(workspace) in map(objects.started_of, filter(None, records))

    def has_never_run(self, workspace_id: str) -> bool:
        # Never certain, because this controller may not have seen all pods. Callers therefore call
        # `end`, which asks the cluster.
        return False

    async def start(self, workspace: Workspace) -> None:
        name = objects.pod_name(workspace.id, workspace.epoch)
        try:
            await self._record_start(workspace)
            pod = await self._create(_PODS, objects.pod(workspace, self._template), name)
            self._pods.put_own(pod)
            spec = self._spec_for(AgentIdentity(workspace.id, workspace.epoch))
            await self._create(_SECRETS, objects.secret(workspace, spec, pod), name)
        except ApiError as error:
            _raise_os_error(error)
        except UnreachableError as error:
            message = f"the API server of the cluster did not answer: {error}"
            raise OSError(errno.EHOSTUNREACH, message) from error

    async def wait_exit(self, workspace: Workspace) -> None:
        while self.is_alive(workspace):
            await self._next_change(workspace.id)

    def is_alive(self, workspace: Workspace) -> bool:
        if not self._is_current:
            return True
        pod = self._pods.get(objects.pod_name(workspace.id, workspace.epoch))
        return pod is not None and pod_states.is_alive(pod) and self.has_files(workspace.id)

    def has_files(self, workspace_id: str) -> bool:
        return not self._is_current or (
            self._claims.get(objects.claim_name(workspace_id)) is not None
        )

    def log_tail(self, workspace_id: str) -> str:
        pods = self._pods_of(workspace_id)
        return pod_states.last_line(pods[max(pods)]) if pods else ""

    def explain(self, workspace: Workspace) -> str:
        pod = self._pods.get(objects.pod_name(workspace.id, workspace.epoch))
        if pod is not None and not self.has_files(workspace.id):
            return "the claim of its volume was deleted"
        if pod is not None:
            return pod_states.explain(pod)
        return "its pod is gone" if self._is_current and self.was_started(workspace) else ""

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        # Includes the pod of this epoch even if this controller does not know it.
        epochs = {workspace.epoch}
        epochs |= {epoch for epoch in self._pods_of(workspace.id) if epoch < workspace.epoch}
        names = (objects.pod_name(workspace.id, epoch) for epoch in epochs)
        ended = await asyncio.gather(
            *(self._end_pod(workspace.id, name, grace_seconds) for name in names)
        )
        return all(ended) and epochs.isdisjoint(self._unconfirmed.get(workspace.id, ()))

    async def remove(self, workspace_id: str) -> bool:
        # The cluster removes each secret with its pod, and the claim after the last pod that uses
        # it.
        names = list(self._names.get(workspace_id, ()))
        ended = await asyncio.gather(*(self._end_pod(workspace_id, name, 0) for name in names))
        claim = objects.claim_name(workspace_id)
        try:
            await self._api.delete(_CLAIMS, claim, 0, self._end_seconds)
        except ApiError as error:
            if error.status == _NOT_FOUND and all(ended):
                self._unconfirmed.pop(workspace_id, None)
                return True
            log.warning("files_not_removed", claim=claim, problem=str(error))
        except UnreachableError as error:
            log.warning("files_not_removed", claim=claim, problem=str(error))
        return False

    async def _end_pod(self, workspace_id: str, name: str, grace_seconds: float) -> bool:
        """Deletes the pod. Returns whether it is gone or the end of its containers is reported."""
        grace = max(_SHORTEST_GRACE_SECONDS, math.ceil(grace_seconds))
        try:
            async with asyncio.timeout(grace + self._end_seconds):
                try:
                    await self._api.delete(_PODS, name, grace, grace + self._end_seconds)
                except ApiError as error:
                    if error.status != _NOT_FOUND:
                        log.warning("pod_not_deleted", pod=name, problem=str(error))
                        return False
                # Even if the pod is gone, the watch may not have reported its deletion yet.
                while (pod := self._pods.get(name)) and not pod_states.end_is_reported(pod):
                    await self._next_change(workspace_id)
        except (TimeoutError, UnreachableError) as error:
            log.warning("pod_end_unconfirmed", pod=name, problem=str(error) or "it may still run")
            return False
        return True

    async def _record_start(self, workspace: Workspace) -> None:
        """Records the start on the claim, and creates the claim if there is none.

        This is done before the pod is started, so that the next controller does not start a second
        pod if this controller dies in between.
        """
        name = objects.claim_name(workspace.id)
        annotations = {objects.STARTED_ANNOTATION: objects.started(workspace)}
        note = {"metadata": {"annotations": annotations}}
        try:
            claim = await self._api.patch(_CLAIMS, name, note, self._start_seconds)
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
            created = objects.claim(workspace, self._template)
            claim = await self._create(_CLAIMS, created, name)
        self._claims.put_own(claim)

    async def _create(self, kind: str, body: Object, name: str) -> Object:
        """Creates the object, or returns the one that an earlier attempt has created."""
        try:
            return await self._api.create(kind, body, self._start_seconds)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
        return await self._api.get(kind, name, self._start_seconds)

    @property
    def _is_current(self) -> bool:
        return self._pods.is_current and self._claims.is_current

    def _pods_of(self, workspace_id: str) -> dict[int, Object]:
        pods = (self._pods.get(name) for name in self._names.get(workspace_id, ()))
        return {objects.key_of(pod)[1]: pod for pod in pods if pod is not None}

    async def _next_change(self, workspace_id: str) -> None:
        await self._changes.setdefault(workspace_id, asyncio.Event()).wait()

    def _wake(self, changed: Object) -> None:
        event = self._changes.pop(objects.key_of(changed)[0], None)
        if event is not None:
            event.set()

    def _wake_all(self) -> None:
        while self._changes:
            self._changes.popitem()[1].set()

    def _note_change(self, pod: Object) -> None:
        workspace_id, epoch = objects.key_of(pod)
        self._note_name(workspace_id, pod["metadata"]["name"])
        if workspace_id in self._unconfirmed and pod_states.is_alive(pod):
            # Once a later epoch has begun, nobody asks whether an earlier one has ended.
            later = {each for each in self._unconfirmed.pop(workspace_id) if each >= epoch}
            if later:
                self._unconfirmed[workspace_id] = later
        self._wake(pod)

    def _note_name(self, workspace_id: str, name: str) -> None:
        names = self._names.setdefault(workspace_id, set())
        if self._pods.get(name) is not None:
            names.add(name)
            return
        names.discard(name)
        if not names:
            del self._names[workspace_id]

    def _note_removal(self, last: Object) -> None:
        if not pod_states.has_ended(last):
            log.warning("pod_disappeared", pod=last["metadata"]["name"])
            workspace_id, epoch = objects.key_of(last)
            self._unconfirmed.setdefault(workspace_id, set()).add(epoch)


def _raise_os_error(error: ApiError) -> NoReturn:
    text = str(error)
    if "exceeded quota" in text:
        raise OSError(errno.EDQUOT, f"the namespace's quota is exhausted: {text}") from error
    raise OSError(errno.EPERM, f"the cluster refused it: {text}") from error
