"""How a walk goes on from one instruction to the next: guards, branches, and lanes that part and meet."""

from __future__ import annotations

import numpy as np

from benchmarks.predict.group import Group
from benchmarks.predict.translate import Step
from benchmarks.predict.values import both


class Branches:
    """Adds to a walk how its groups go on. The walk has `kernel`, `compiled`, `limit`, `decide` and `guesses`."""

    def go(self, group: Group) -> list[Group] | None:
        """Carries out instructions until the warps have exited (returns None) or part (returns the groups)."""
        steps, code, values = self.compiled.steps, self.kernel.code, group.values
        positions, at = group.positions, group.position
        append, off_row = positions.append, self.off_row
        end = len(steps)
        while True:
            if at >= end:
                raise ValueError(f"{self.kernel.name}: the code ends without EXIT")
            step = steps[at]
            append(at)
            control = step.control
            guard = True
            if step.guard >= 0:
                guard = values[step.guard]
                if guard is not None and step.negative:
                    guard = (not guard) if isinstance(guard, (bool, np.bool_)) else ~guard
                if isinstance(guard, np.ndarray) and not control:
                    active = guard if group.mask is None else guard & group.mask
                    if not active.any():
                        guard = False
                    else:
                        idle_warps = ~active.reshape(-1, 32).any(1)
            if control:
                if control == "never":
                    at += 1
                    continue
                group.position = at
                if len(positions) > self.limit:
                    raise ValueError(f"the way through {self.kernel.name} does not end: last at {code[at].address:x}")
                outcome = self.branch(group, step, control, guard)
                if outcome is None or isinstance(outcome, list):
                    return outcome
                at = outcome
                continue
            if guard is False:
                group.special_rows.append((len(positions) - 1, off_row))
                at += 1
                continue
            writes = step.writes
            group.guard = guard
            partly = isinstance(guard, np.ndarray) and idle_warps.any()
            whole = guard is True and group.mask is None
            if not whole and writes:
                old = [values[w] for w in writes]
            if step.run is not None:
                step.run(group)
            else:
                for w in writes:
                    values[w] = None
            if partly:  # warps for which it does nothing
                last, row = len(positions) - 1, 0
                if group.special_rows and group.special_rows[-1][0] == last:
                    row = group.special_rows.pop()[1]
                rows = row if isinstance(row, list) else [row] * len(idle_warps)
                group.special_rows.append(
                    (last, [off_row if no else r for r, no in zip(rows, idle_warps, strict=True)])
                )
            if not whole and writes:
                lanes = group.working()
                if guard is None:
                    for w, before in zip(writes, old, strict=True):
                        if not (isinstance(before, int) and isinstance(values[w], int) and before == values[w]):
                            values[w] = None
                elif lanes is not None:
                    for w, before in zip(writes, old, strict=True):
                        new = values[w]
                        if new is None:
                            continue
                        if before is None:  # others' values do not matter where only these lanes go on
                            if group.mask is not None and guard is True:
                                continue
                            values[w] = None if guard is not True else new
                            if isinstance(guard, np.ndarray):
                                values[w] = new  # of lanes whose guard is false nothing is known, nor is it used
                            continue
                        values[w] = np.where(lanes, new, before)
            at += 1

    def choose(self, group: Group, address: int, target: int) -> bool:
        """Returns whether a branch is taken whose predicate is not known."""
        self.guesses[address] += 1
        visit = group.visits[address]
        group.visits[address] += 1
        if self.decide is not None and (wanted := self.decide(address, visit)) is not None:
            return wanted
        if target <= address or target not in self.kernel.index:
            return False
        between = self.kernel.code[self.kernel.index[address] + 1 : self.kernel.index[target]]
        return any(i.op == "CALL" for i in between)  # a slow path, such as a division's, is not for ordinary numbers

    def branch(self, group: Group, step: Step, control: str, guard):
        """Returns the next position, a list of groups to go on with, or None at the end."""
        kernel, at = self.kernel, group.position
        instruction = kernel.code[at]
        active = None
        if step.run is True or (step.run is not None and control == "BRA"):
            own = step.run(group)
            guard = own if guard is True else both(guard, own)
        if control == "WARPSYNC":
            group.barriers["warp"] = (None, at + 1)
            return self.meet(group, "warp", at) if group.waiting or group.mask is not None else at + 1
        if control in ("BSSY", "BSYNC", "BREAK"):
            name = instruction.operands.split(",")[0]
            if control == "BSSY":
                group.barriers[name] = (group.mask, kernel.index.get(instruction.target, at + 1))
                group.arrived.pop(name, None)
            elif control == "BSYNC" and guard is not False:
                return self.meet(group, name, at)
            return at + 1
        if guard is False:
            return at + 1
        if control == "EXIT" and guard is None:
            guard = self.choose(group, instruction.address, -1)
        elif guard is None:
            guard = self.choose(group, instruction.address, instruction.target)
        if guard is False:
            return at + 1
        if isinstance(guard, np.ndarray):
            active = group.active()
            taken = (guard & active).reshape(-1, 32).any(1)
            stays = (~guard & active).reshape(-1, 32).any(1)
            kinds = [taken & ~stays, stays & ~taken, taken & stays]
            parts = [k for k in kinds if k.any()]
            if len(parts) > 1:  # warps part
                group.positions.pop()
                return [group.fork(k) for k in parts]
            if kinds[0].any():
                guard = True
            elif not kinds[2].any():
                return at + 1
        if control == "EXIT":
            leaving = group.active() if guard is True else guard & group.active()
            group.exited = leaving if group.exited is None else group.exited | leaving
            rest = group.active() & ~leaving
            if rest.any():
                group.mask = rest
                return at + 1
            return self.resume(group)
        if control == "BRA":
            target = kernel.index[instruction.target]
            if guard is True:
                return target
            taking = guard & group.active()
            group.waiting.append((taking, target))
            group.mask = group.active() & ~taking
            return at + 1
        if control == "CALL":
            return kernel.index[instruction.target]
        if control == "RET":
            where = group.first_lane(step.run(group))
            if not isinstance(where, int) or where not in kernel.index:
                raise ValueError(f"{kernel.name}: where the return at {instruction.address:x} goes is not known")
            return kernel.index[where]
        raise ValueError(f"{kernel.name}: {instruction.full} at {instruction.address:x} is not understood")

    def meet(self, group: Group, name: str, at: int):
        """Lets lanes wait where BSSY said, until the others of the same BSSY are there."""
        if name not in group.barriers:
            return at + 1
        mask, target = group.barriers[name]
        here = group.active()
        arrived = here | group.arrived.get(name, np.zeros(group.lanes, bool))
        needed = np.ones(group.lanes, bool) if mask is None else mask
        if group.exited is not None:
            needed = needed & ~group.exited
        if not group.waiting or not (needed & ~arrived).any():
            group.arrived.pop(name, None)
            group.mask = None if arrived.all() else arrived
            return target
        group.arrived[name] = arrived
        return self.resume(group, name)

    def resume(self, group: Group, name: str = ""):
        """Continues with lanes that wait to go another way; returns None if all have exited."""
        if group.waiting:
            mask, position = group.waiting.pop()
            group.mask = None if mask.all() else mask
            return position
        for key in [name, *group.arrived]:
            if key in group.arrived:
                arrived = group.arrived.pop(key)
                group.mask = None if arrived.all() else arrived
                return group.barriers[key][1]
        return None
