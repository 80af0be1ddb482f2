/*
 * Suspension, wake, cancellation and deletion of a workspace.
 *
 * Covers: a workspace that is suspended after it was idle, a task that wakes it, a cancellation before, during
 * and after the registration of its agent, a deletion at each step, the removal of files and rows; a controller that dies
 * between two steps; an agent that ignores that it is fenced.
 *
 * Leaves out: workers and signals (cancel.pml), former leaders (controller.pml), stops, the batches in which rows
 * are removed, and pods whose end is unknown.
 */

/* The next number, at most two. */
#define more(n) (n < 2 -> n + 1 : 2)

mtype = { IDLE, BUSY, SUSPENDED, PROVISIONING, DELETING, REMOVED };
mtype = { OPEN, COMPLETED, CANCELLED };
mtype = { NOT_STARTED, RUNNING, GONE };

/* The database. There are up to two tasks, one after the other. `placed`: the workspace has a run_id. */
mtype workspace = IDLE;
byte epoch;
bool placed = true;
byte submitted;
bool open;
bool intent;
mtype status = OPEN;
/* Counts the changes of the workspace, like updated_at. */
byte changes;

mtype pod[2] = NOT_STARTED;
/* For each epoch: whether its agent has been given the task. */
bool given[2];
/* For each epoch: whether its agent hangs. */
bool hangs[2];

/* Variables for the properties. */
byte ends[2];
bool wrong_end;
bool accepted;
bool begun_cancelled;
bool lost_task;
bool not_idle;
bool outlived;
bool given_by_fenced;

/* A task ends at most once. */
ltl one_end { [] (ends[0] <= 1 && ends[1] <= 1) }
/* A task with a recorded cancellation ends cancelled. */
ltl cancel_decides_the_end { [] (!wrong_end) }
/* No workspace is removed before its tasks have ended. */
ltl no_task_is_lost { [] (!lost_task) }
/* A suspended workspace has no task. */
ltl suspended_only_when_idle { [] (!not_idle) }
/* The rows of a workspace are removed only after its pods have ended. */
ltl no_pod_outlives_its_workspace { [] (!outlived) }
/* No agent of an earlier epoch ends a task. */
ltl fenced_agent_changes_nothing { [] (!given_by_fenced) }
/* With fair scheduling, a task whose cancellation was accepted ends. */
ltl accepted_ends { [] (accepted -> <> (!open || workspace == REMOVED)) }
/* With fair scheduling, a deleted workspace is removed. */
ltl deletion_ends { [] (workspace == DELETING -> <> (workspace == REMOVED)) }

inline end_task(proposed)
{
    status = (intent -> CANCELLED : proposed);
    wrong_end = wrong_end || (intent && status != CANCELLED);
    ends[submitted - 1] = more(ends[submitted - 1]);
    open = false; given[0] = false; given[1] = false;
    if
    :: workspace == BUSY -> workspace = IDLE
    :: else
    fi
}

proctype callers()
{
    do
    /* environment: nobody calls */
    :: atomic { true -> skip }
    /* server/evershell/core/task_lifecycle.py: submit */
    :: atomic { submitted < 2 && !open && (workspace == IDLE || workspace == PROVISIONING) ->
        submitted++; open = true; intent = false; accepted = false; changes++;
        workspace = (workspace == IDLE -> BUSY : PROVISIONING);
        given[epoch] = workspace == BUSY }
    /* server/evershell/core/workspace.py: in_new_epoch */
    :: atomic { submitted < 2 && workspace == SUSPENDED && epoch == 0 ->
        submitted++; open = true; intent = false; accepted = false; changes++;
        workspace = PROVISIONING; epoch = 1; placed = false }
    /* server/evershell/store/functions/record_cancellation.sql: record_cancellation */
    :: atomic { open && !intent && (workspace == BUSY || workspace == PROVISIONING) ->
        intent = true; accepted = true }
    /* server/evershell/core/workspace_lifecycle.py: request_delete */
    :: atomic { workspace != DELETING && workspace != REMOVED ->
        workspace = DELETING;
        intent = intent || open;
        if
        :: open && !placed -> end_task(COMPLETED)
        :: else
        fi }
    od
}

proctype agent(byte own)
{
    do
    /* server/evershell/core/workspace_lifecycle.py: register */
    :: atomic { pod[own] == RUNNING && !hangs[own] && workspace == PROVISIONING && epoch == own ->
        workspace = (open -> BUSY : IDLE); given[own] = open; changes++ }
    /* environment: the agent hangs for good */
    :: atomic { pod[own] == RUNNING && !hangs[own] -> hangs[own] = true }
    /* server/evershell/core/task_lifecycle.py: commit */
    :: atomic { pod[own] == RUNNING && !hangs[own] && open && given[own] && epoch == own &&
        (workspace == BUSY || (workspace == DELETING && placed)) ->
        given_by_fenced = given_by_fenced || epoch != own;
        changes++;
        end_task(COMPLETED) }
    od
}

proctype controller()
{
    byte seen;
    byte since;
    do
    /* server/evershell/fleet/steps.py: _is_idle_too_long */
    :: atomic { workspace == IDLE && pod[epoch] == RUNNING -> seen = epoch; since = changes };
        /* server/evershell/core/workspace_lifecycle.py: suspend */
        atomic {
            if
            :: workspace == IDLE && changes == since -> workspace = SUSPENDED
            :: else
            fi;
            not_idle = not_idle || (workspace == SUSPENDED && open);
            since = 0; seen = 0 }
    /* server/evershell/fleet/steps.py: _end_suspended */
    :: atomic { workspace == SUSPENDED && placed -> seen = epoch };
        /* server/evershell/fleet/steps.py: _end_pod */
        atomic { true -> pod[seen] = GONE };
        /* server/evershell/core/workspace_lifecycle.py: finish_suspension */
        atomic {
            if
            :: workspace == SUSPENDED && epoch == seen -> placed = false
            :: else
            fi;
            seen = 0 }
    /* server/evershell/fleet/limits.py: end_unstarted */
    :: atomic { workspace == PROVISIONING && open && intent -> changes++; end_task(COMPLETED) }
    /* server/evershell/fleet/steps.py: _end_overdue */
    :: atomic { workspace == BUSY && open && intent -> seen = epoch };
        /* server/evershell/fleet/steps.py: _fail, _end_pod */
        atomic { true -> pod[seen] = GONE };
        /* server/evershell/core/workspace_lifecycle.py: lose_agent */
        atomic {
            if
            :: epoch == seen && (workspace == BUSY || workspace == IDLE) ->
                if
                :: open -> end_task(COMPLETED)
                :: else
                fi;
                workspace = SUSPENDED; placed = false
            :: else
            fi;
            seen = 0 }
    /* server/evershell/core/workspace_lifecycle.py: place */
    :: atomic { workspace == PROVISIONING && !placed -> placed = true }
    /* server/evershell/fleet/steps.py: _reconcile_start */
    :: atomic { workspace == PROVISIONING && placed && pod[epoch] != RUNNING -> seen = epoch };
        /* server/evershell/fleet/steps.py: _end_pod */
        atomic { true -> pod[0] = GONE };
        /* server/evershell/fleet/steps.py: _reconcile_start */
        atomic {
            if
            :: workspace == PROVISIONING && epoch == seen -> pod[seen] = RUNNING
            :: else
            fi;
            seen = 0 }
    /* server/evershell/fleet/steps.py: _reconcile_stop */
    :: atomic { workspace == DELETING && placed -> pod[0] = GONE; pod[epoch] = GONE };
        /* server/evershell/core/workspace_lifecycle.py: finish_stop */
        atomic {
            if
            :: open -> end_task(COMPLETED)
            :: else
            fi;
            placed = false }
    /* server/evershell/fleet/steps.py: remove */
    :: atomic { workspace == DELETING && !placed };
        /* server/evershell/fleet/steps.py: _end_pod */
        atomic { true -> pod[0] = GONE; pod[1] = GONE };
        /* server/evershell/fleet/steps.py: remove */
        atomic {
            outlived = outlived || pod[0] == RUNNING || pod[1] == RUNNING;
            lost_task = lost_task || open;
            workspace = REMOVED }
    /* environment: the controller dies, and the next one starts from the beginning */
    od
}

init
{
    atomic {
        pod[0] = RUNNING;
        run agent(0);
        run agent(1);
        run callers();
        run controller()
    }
}
