# ruff: noqa: E501 - the texts are lines of the models
"""The mutations of the models. Each breaks one property and keeps all others of its model."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.spec.model import Model, model


@dataclass(frozen=True)
class Mutant:
    """A model with a defect."""

    model: str
    # The property that finds the mutant. No other property does.
    found_by: str
    # The defect, as a clause for the output of `make spec`.
    defect: str
    # A text in the model, and its replacement.
    text: str
    replacement: str

    @property
    def mutated(self) -> Model:
        """The model with the defect. Raises ValueError unless `text` occurs exactly once."""
        return model(self.model).with_replaced(self.text, self.replacement)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "cancel",
        "one_accepted",
        "a repeat is answered `accepted` again",
        "outcome = ALREADY_REQUESTED; locked = false",
        "outcome = ACCEPTED; accepted[task] = more(accepted[task]); locked = false",
    ),
    Mutant(
        "cancel",
        "one_end",
        "the controller ends the task that it has read, without reading it again under the lock",
        "            :: current == task ->\n                status",
        "            :: true ->\n                status",
    ),
    Mutant(
        "cancel",
        "accepted_is_cancelled",
        "the end reads the intent before it takes the lock",
        "!locked && current == working ->\n        locked = true; seen = intent[working] };",
        "current == working ->\n        seen = intent[working] };\n"
        "        atomic { !locked && working != NOBODY && current == working -> locked = true };",
    ),
    Mutant(
        "cancel",
        "accepted_is_cancelled",
        "the controller ends an overdue task without a check of its intent",
        "                status[task] = CANCELLED; ends[task] = more(ends[task])",
        "                status[task] = COMPLETED; ends[task] = more(ends[task])",
    ),
    Mutant(
        "cancel",
        "cancelled_was_asked",
        "the end that the agent proposes is committed without a check of the intent",
        "(seen -> CANCELLED : COMPLETED)",
        "CANCELLED",
    ),
    Mutant(
        "cancel",
        "named_hits_its_task",
        "a call that names a task cancels the current one",
        "task = (named -> 0 : current)",
        "task = current",
    ),
    Mutant(
        "cancel",
        "unnamed_hits_one_task",
        "a call without a task id is repeated after a lost answer",
        "    :: atomic { named && calls > 0 -> outcome = OPEN; goto again }\n    :: else -> goto gone",
        "    :: atomic { hit_unnamed < 2 -> outcome = OPEN; calls = 1; goto again }\n"
        "    :: else -> goto gone",
    ),
    Mutant(
        "cancel",
        "already_after_recorded",
        "a task that has no intent yet is answered `already_requested`",
        "        outcome = ACCEPTED;\n        intent[task] = true;\n        accepted[task] = more(accepted[task]);",
        "        outcome = ALREADY_REQUESTED;\n        intent[task] = true;",
    ),
    Mutant(
        "cancel",
        "wait_sees_its_task",
        "a wait follows the workspace instead of the task",
        "is_over(task) -> waited = task;",
        "is_over(1) -> waited = 1;",
    ),
    Mutant(
        "cancel",
        "accepted_ends",
        "no bound ends the pod of an agent that is frozen",
        "current != NOBODY && intent[current] && !locked ->\n        task = current;",
        "!frozen && current != NOBODY && intent[current] && !locked ->\n        task = current;",
    ),
    Mutant(
        "force",
        "earliest_force_is_recorded",
        "the first deadline stays, even if a later call sets an earlier one",
        "        :: deadline < force_at -> force_at = deadline",
        "        :: deadline < force_at -> skip",
    ),
    Mutant(
        "force",
        "earliest_force_is_recorded",
        "the last deadline replaces an earlier one",
        "        :: deadline < force_at -> force_at = deadline",
        "        :: deadline != NEVER -> force_at = deadline",
    ),
    Mutant(
        "force",
        "agent_keeps_earliest_force",
        "a late signal postpones the deadline",
        "    :: deadline < agent_force_at -> agent_force_at",
        "    :: deadline != agent_force_at -> agent_force_at",
    ),
    Mutant(
        "force",
        "forced_was_asked",
        "the controller forces every cancelled task",
        "!is_over && intent && force_at != NEVER ->",
        "!is_over && intent ->",
    ),
    Mutant(
        "force",
        "forced_ends",
        "nothing ends the pod of an agent that does not interrupt its task",
        "            :: !is_over ->\n                forced_unasked",
        "            :: false ->\n                forced_unasked",
    ),
    Mutant(
        "agent",
        "one_end",
        "an end is committed again after a lost reply",
        "        :: !is_fenced && current == working ->\n            /* server/evershell/core/task_lifecycle.py: _end */",
        "        :: !is_fenced ->\n            /* server/evershell/core/task_lifecycle.py: _end */",
    ),
    Mutant(
        "agent",
        "cancel_decides_the_end",
        "the end that the agent proposes wins over the intent",
        "            :: intent[working] -> status[working] = CANCELLED",
        "            :: intent[working] -> status[working] = proposed",
    ),
    Mutant(
        "agent",
        "cancelled_was_asked",
        "a `cancelled` that nobody asked for is accepted from the agent",
        "proposed == CANCELLED -> status[working] = FAILED",
        "proposed == CANCELLED -> status[working] = CANCELLED",
    ),
    Mutant(
        "agent",
        "no_iteration_after_learning",
        "the flag is not checked before an iteration",
        "iterations < 2 &&\n        !flag[working] ->",
        "iterations < 2 ->",
    ),
    Mutant(
        "agent",
        "no_iteration_before_start",
        "the function runs before its start is committed",
        "working != NOBODY && started && !iterating && iterations < 2",
        "working != NOBODY && !iterating && iterations < 2",
    ),
    Mutant(
        "agent",
        "current_task_is_kept",
        "the agent follows a reply to an older heartbeat",
        "replied != working && !sent_before_start ->",
        "replied != working ->",
    ),
    Mutant(
        "agent",
        "cancelled_ends",
        "only an expired lease ends the pod, and heartbeats renew the lease",
        "(!alive || lease_over || (current != NOBODY && intent[current]))",
        "(lease_over)",
    ),
    Mutant(
        "controller",
        "one_end",
        "a task that has ended is ended again with its pod",
        "                :: status == OPEN -> end_task(FAILED)",
        "                :: true -> end_task(FAILED)",
    ),
    Mutant(
        "controller",
        "cancel_decides_the_end",
        "a lost agent's task fails, whatever is recorded",
        "status = (intent -> CANCELLED : proposed);",
        "status = proposed;",
    ),
    Mutant(
        "controller",
        "work_stopped_is_true",
        "a pod whose end is unknown counts as ended",
        "!all_ended -> stopped = false",
        "!all_ended -> stopped = true",
    ),
    Mutant(
        "controller",
        "former_leader_touches_no_pod",
        "a pod is ended without a check of the term",
        "term == own -> end_pods() }\n        fi;\n        if\n        /* server/evershell/fleet/pods.py: end */",
        "true -> end_pods() }\n        fi;\n        if\n        /* server/evershell/fleet/pods.py: end */",
    ),
    Mutant(
        "controller",
        "former_leader_touches_no_pod",
        "a pod is started without a check of the term",
        "        :: atomic { term == own && epoch == seen && workspace == PROVISIONING ->",
        "        :: atomic { epoch == seen && workspace == PROVISIONING ->",
    ),
    Mutant(
        "controller",
        "step_changes_only_its_epoch",
        "the loss of an agent does not compare the epochs",
        "            :: epoch == seen && workspace == UP ->\n                other_epoch",
        "            :: workspace == UP ->\n                other_epoch",
    ),
    Mutant(
        "controller",
        "fenced_agent_changes_nothing",
        "a commit does not compare the epochs",
        "status == OPEN && workspace == UP && epoch == own ->",
        "status == OPEN && workspace == UP ->",
    ),
    Mutant(
        "controller",
        "cancelled_ends",
        "a pod whose end is unknown keeps the task open",
        "        :: atomic { !all_ended -> stopped = false }\n",
        "",
    ),
    Mutant(
        "database",
        "accepted_is_kept",
        "a commit whose wait was given up counts as answered",
        "        :: atomic { answered ->\n            if\n            :: is_new",
        "        :: atomic { answered || is_new ->\n            if\n            :: is_new",
    ),
    Mutant(
        "database",
        "already_requested_is_kept",
        "`already_requested` is read without the lock, so nothing waits for the standby",
        "    :: server == 0 && !waiting && shown_status != OPEN -> break",
        "    :: atomic { server == 0 && shown_intent -> already = true; break }\n"
        "    :: server == 0 && !waiting && shown_status != OPEN -> break",
    ),
    Mutant(
        "database",
        "end_is_kept",
        "an end is acknowledged before the standby has it",
        "status[0] = ended };",
        "status[0] = ended; told_end = ended };",
    ),
    Mutant(
        "database",
        "one_end",
        "an end does not look for an earlier one on the promoted server",
        "server == 1 && promoted && status[1] == OPEN && (is_agent || intent[1]) ->\n        status[1] =",
        "server == 1 && promoted && (is_agent || intent[1]) ->\n        status[1] =",
    ),
    Mutant(
        "database",
        "cancel_decides_the_end",
        "what the agent knows decides the end",
        "status[1] = (intent[1] -> CANCELLED : (flag -> FAILED : COMPLETED));",
        "status[1] = (flag -> CANCELLED : COMPLETED);",
    ),
    Mutant(
        "database",
        "accepted_ends",
        "a worker never leaves the old primary",
        "    :: atomic { promoted && server == 0 && !waiting -> server = 1 }\n",
        "",
    ),
    Mutant(
        "trees",
        "no_task_escapes_its_tree",
        "a child is submitted without the lock of the tree",
        "!locked && status[task - 1] != ABSENT -> locked = true }",
        "status[task - 1] != ABSENT }",
    ),
    Mutant(
        "trees",
        "no_task_escapes_its_tree",
        "the state of the parent is not checked for a cancellation",
        "allowed = status[task - 1] == OPEN && !intent[task - 1]",
        "allowed = status[task - 1] == OPEN",
    ),
    Mutant(
        "trees",
        "unnamed_cancels_the_current_task",
        "the current task is not compared under the locks",
        "    :: atomic { named || current == task ->\n        other_task",
        "    :: atomic { true ->\n        other_task",
    ),
    Mutant(
        "trees",
        "cancel_decides_the_end",
        "a descendant's end does not read its intent",
        "status[task] = (intent[task] -> CANCELLED : COMPLETED);",
        "status[task] = COMPLETED;",
    ),
    Mutant(
        "trees",
        "tree_ends",
        "a cancelled task waits for its children",
        "    :: atomic { status[task] == OPEN ->\n        status[task]",
        "    :: atomic { status[task] == OPEN && (task == GRANDCHILD || status[task + 1] != OPEN) &&\n"
        "        !(task == GRANDCHILD && intent[task]) ->\n        status[task]",
    ),
    Mutant(
        "holds",
        "no_task_begins_in_a_hold",
        "a submission reads the hold before it has the lock",
        "    atomic { !alone -> shared++ };\n    /* server/evershell/store/holds.py: share_hold */\n"
        "    atomic { true -> refused = held };\n    /* server/evershell/core/change.py",
        "    atomic { true -> refused = held };\n    /* server/evershell/store/holds.py: share_hold */\n"
        "    atomic { !alone -> shared++ };\n    /* server/evershell/core/change.py",
    ),
    Mutant(
        "holds",
        "no_agent_begins_in_a_hold",
        "a resume does not share the lock",
        "    atomic { !alone -> shared++ };\n    /* server/evershell/store/holds.py: share_hold */\n"
        "    atomic { true -> refused = held };\n    /* server/evershell/core/workspaces.py",
        "    atomic { true -> refused = held };\n    /* server/evershell/store/holds.py: share_hold */\n"
        "    atomic { true -> shared++ };\n    /* server/evershell/core/workspaces.py",
    ),
    Mutant(
        "holds",
        "hold_cancels_all_that_runs",
        "the hold leaves out a task that another transaction has locked",
        "        intent[1] = intent[1] || status[1] == OPEN };",
        "        skip };",
    ),
    Mutant(
        "holds",
        "hold_is_answered",
        "a refused submission keeps the lock",
        "        :: !refused -> status[task] = OPEN; begun_in_hold = begun_in_hold || held\n        :: else\n"
        "        fi;\n        shared--",
        "        :: !refused -> status[task] = OPEN; begun_in_hold = begun_in_hold || held\n        :: else\n"
        "        fi;\n        shared = shared - (refused -> 1 : 0)",
    ),
    Mutant(
        "lifecycle",
        "one_end",
        "a task that waits for a wake is ended without a check of its status",
        "workspace == PROVISIONING && open && intent -> changes++; end_task(COMPLETED) }",
        "workspace == PROVISIONING && submitted > 0 && intent && ends[submitted - 1] < 2 ->\n"
        "        end_task(COMPLETED) }",
    ),
    Mutant(
        "lifecycle",
        "cancel_decides_the_end",
        "a deletion ends the task with its own status",
        "status = (intent -> CANCELLED : proposed);",
        "status = (intent && workspace != DELETING -> CANCELLED : proposed);",
    ),
    Mutant(
        "lifecycle",
        "suspended_only_when_idle",
        "a suspension does not read the workspace under the lock",
        "            :: workspace == IDLE && changes == since -> workspace = SUSPENDED",
        "            :: workspace == IDLE || (workspace == BUSY && !intent) -> workspace = SUSPENDED",
    ),
    Mutant(
        "lifecycle",
        "no_task_is_lost",
        "a deletion does not end the task that no agent has",
        "        :: open && !placed -> end_task(COMPLETED)",
        "        :: false -> end_task(COMPLETED)",
    ),
    Mutant(
        "lifecycle",
        "no_pod_outlives_its_workspace",
        "a workspace is removed without a check of the pods of earlier epochs",
        "        atomic { true -> pod[0] = GONE; pod[1] = GONE };\n        /* server/evershell/fleet/steps.py: remove */",
        "        /* server/evershell/fleet/steps.py: remove */",
    ),
    Mutant(
        "lifecycle",
        "fenced_agent_changes_nothing",
        "a commit does not compare the epochs",
        "open && given[own] && epoch == own &&",
        "open &&",
    ),
    Mutant(
        "lifecycle",
        "accepted_ends",
        "a cancelled task waits for an agent that is not started",
        "    :: atomic { workspace == PROVISIONING && open && intent -> changes++; end_task(COMPLETED) }\n",
        "",
    ),
    Mutant(
        "lifecycle",
        "deletion_ends",
        "the end of the pod is not recorded",
        "            fi;\n            placed = false }",
        "            fi }",
    ),
)


def of(name: str) -> Iterator[Mutant]:
    """Returns the mutants of a model."""
    return (each for each in MUTANTS if each.model == name)
