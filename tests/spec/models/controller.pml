/*
 * The fleet controllers of three terms, and the pods of a workspace with two tasks.
 *
 * Covers: the end of an agent that is lost or overdue, the start of the next agent, a term that ends at each
 * step, a former leader that acts on what it has read, a pod that does not die at once or whose end is
 * unknown, an agent of an earlier epoch that attackers have taken over, a resume.
 *
 * Leaves out: signals (cancel.pml), suspension and deletion (lifecycle.pml), stops, restarts of the
 * stack, and a freeze between `_require_term` and the call of the pods that follows: in the model, both are one
 * step. The backends of the pods do not know terms, so a leader that freezes there may still act later.
 */

/* The next number, at most two. */
#define more(n) (n < 2 -> n + 1 : 2)

mtype = { OPEN, COMPLETED, CANCELLED, FAILED, UP, PROVISIONING, LOST };
mtype = { NOT_STARTED, RUNNING, DYING, GONE };

/* The database. `task` is the current task; the second task is submitted in the second epoch. */
mtype workspace = UP;
byte epoch;
byte task;
bool intent;
mtype status = OPEN;

/* The pods, by epoch. */
mtype pod[2] = NOT_STARTED;
/* For each epoch: whether its pod hangs, so that it does not end. */
bool hangs[2];
/* The current term. Each term has its own controller. */
byte term;

/* Variables for the properties. */
byte ends[2];
bool wrong_end;
bool false_stop;
bool by_former_leader;
bool by_fenced;
bool other_epoch;

/* A task ends at most once. */
ltl one_end { [] (ends[0] <= 1 && ends[1] <= 1) }
/* A task with a recorded cancellation ends cancelled. */
ltl cancel_decides_the_end { [] (!wrong_end) }
/* work_stopped is recorded only if no pod of the workspace runs. */
ltl work_stopped_is_true { [] (!false_stop) }
/* A former leader neither starts nor ends a pod. */
ltl former_leader_touches_no_pod { [] (!by_former_leader) }
/* What a controller has read about an epoch never changes a later epoch. */
ltl step_changes_only_its_epoch { [] (!other_epoch) }
/* A commit by the agent of an earlier epoch has no effect. */
ltl fenced_agent_changes_nothing { [] (!by_fenced) }
/* With fair scheduling, a cancelled task ends, even if leaders change and pods do not die. */
ltl cancelled_ends { [] (intent -> <> (status != OPEN)) }

inline end_task(proposed)
{
    /* server/evershell/core/task_lifecycle.py: _end */
    status = (intent -> CANCELLED : proposed);
    wrong_end = wrong_end || (intent && status != CANCELLED);
    ends[task] = more(ends[task])
}

active proctype callers()
{
    do
    /* server/evershell/core/task_lifecycle.py: request_cancel */
    :: atomic { status == OPEN && !intent -> intent = true }
    /* server/evershell/core/workspace_lifecycle.py: resume */
    :: atomic { workspace == LOST && epoch == 0 -> workspace = PROVISIONING; epoch = 1 }
    /* server/evershell/core/task_lifecycle.py: submit */
    :: atomic { workspace == UP && epoch == 1 && status != OPEN && task == 0 ->
        task = 1; status = OPEN; intent = false }
    od
}

/* The agent of each epoch. Attackers may have taken it over: it tries to end the current task. */
proctype agent(byte own)
{
    do
    /* server/evershell/core/workspace_lifecycle.py: register */
    :: atomic { pod[own] == RUNNING && workspace == PROVISIONING && epoch == own -> workspace = UP }
    /* server/evershell/core/task_lifecycle.py: commit, _is_current */
    :: atomic { !hangs[own] && (pod[own] == RUNNING || pod[own] == DYING) && status == OPEN && workspace == UP && epoch == own ->
        by_fenced = by_fenced || epoch != own;
        end_task(COMPLETED) }
    /* environment: the agent dies, with its pod */
    :: atomic { pod[own] == RUNNING -> pod[own] = GONE }
    /* environment: a pod ends after it was asked to */
    :: atomic { pod[own] == DYING && !hangs[own] -> pod[own] = GONE }
    /* environment: the pod hangs, and nobody knows whether it has ended */
    :: atomic { pod[own] == DYING && !hangs[own] -> hangs[own] = true }
    od
}

#define ended(e) (pod[e] == NOT_STARTED || pod[e] == GONE)
#define all_ended (ended(0) && (seen == 0 || ended(1)))

/* Asks the pods of this epoch and of earlier epochs to end. */
inline end_pods()
{
    by_former_leader = by_former_leader || term != own;
    if
    :: pod[0] == RUNNING -> pod[0] = DYING
    :: else
    fi;
    if
    :: seen == 1 && pod[1] == RUNNING -> pod[1] = DYING
    :: else
    fi
}

proctype controller(byte own)
{
    byte seen;
    bool stopped;
    (term == own);
    do
    /* server/evershell/fleet/steps.py: _reconcile_agent, _end_overdue */
    :: atomic { term == own && workspace == UP && (ended(epoch) || (status == OPEN && intent)) ->
        seen = epoch };
        if
        /* server/evershell/fleet/steps.py: _require_term */
        :: atomic { term != own -> break }
        /* server/evershell/fleet/steps.py: _fail, _end_pod */
        :: atomic { term == own -> end_pods() }
        fi;
        if
        /* server/evershell/fleet/pods.py: end */
        :: atomic { all_ended -> stopped = true }
        /* server/evershell/fleet/pods.py: end */
        :: atomic { !all_ended -> stopped = false }
        fi;
        /* server/evershell/core/workspace_lifecycle.py: lose_agent */
        atomic {
            if
            /* server/evershell/core/workspace.py: is_over */
            :: epoch == seen && workspace == UP ->
                other_epoch = other_epoch || epoch != seen;
                false_stop = false_stop || (stopped && !all_ended);
                if
                :: status == OPEN -> end_task(FAILED)
                :: else
                fi;
                workspace = LOST
            :: else
            fi;
            stopped = false; seen = 0 }
    /* server/evershell/fleet/steps.py: _needs_start, _reconcile_start */
    :: atomic { term == own && workspace == PROVISIONING && pod[epoch] != RUNNING -> seen = epoch };
        if
        /* server/evershell/fleet/steps.py: _require_term */
        :: atomic { term != own -> break }
        /* server/evershell/fleet/steps.py: _end_pod */
        :: atomic { term == own -> end_pods() }
        fi;
        if
        /* server/evershell/fleet/steps.py: _require_term */
        :: atomic { term != own -> break }
        /* server/evershell/fleet/steps.py: _reconcile_start */
        :: atomic { term == own && (epoch != seen || workspace != PROVISIONING) -> seen = 0 }
        /* server/evershell/fleet/pods.py: start */
        :: atomic { term == own && epoch == seen && workspace == PROVISIONING ->
            by_former_leader = by_former_leader || term != own;
            pod[seen] = RUNNING; seen = 0 }
        fi
    /* server/evershell/fleet/leading.py: lead */
    :: atomic { term > own -> break }
    od
}

active proctype leadership()
{
    do
    /* server/evershell/store/leadership.py: _watch */
    :: atomic { term < 2 -> term++ }
    od
}

init
{
    atomic {
        pod[0] = RUNNING;
        run agent(0);
        run agent(1);
        run controller(0);
        run controller(1);
        run controller(2)
    }
}
