// The simulation of one SM; simulate.py compiles it on first use, and docs/predicted.md explains the model.
//
// Four sub-partitions (SMSP) issue one instruction of a warp a clock each, greedy then oldest. A warp's next
// instruction may issue when its stall count, the dependency barriers it waits for, its pipe and the memory queue
// allow. Blocks follow one another as places become free.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <queue>
#include <vector>

namespace {

constexpr double kNever = 1e300;
constexpr int kStuck = 64;

// The same numbers as in figures.py.
enum Kind {
  kPlain,
  kMemory,
  kBar,
  kDepbar,
  kLeave,
  kGroup,
  kWgmma,
  kWaitWgmma,
  kSlow,
  kBarrierInit,
  kBarrierArrive,
  kBarrierWait,
  kCopyArrive,
  kBulkLoad,
  kBulkStore,
  kBulkCommit
};
enum Pipe { kNoPipe = -1, kHeavy, kLite, kAlu, kXu, kTensor, kUniform, kAddress, kFma };
enum Reason {
  kStall,
  kDependency,
  kPorts,
  kQueue,
  kByFma,
  kByAlu,
  kByXu,
  kByTensor,
  kByUniform,
  kCopies,
  kByWgmma,
  kByBarrier,
  kByMbarrier,
  kNotSelected,
  kEmpty,
  kReasons
};
enum Busy {
  kIssue,
  kBusyFma,
  kBusyAlu,
  kBusyXu,
  kBusyTensor,
  kBusyUniform,
  kBusyAgu,
  kBusyPorts,
  kBusyShared,
  kBusyL2,
  kBusyHbm,
  kBusies
};
enum Extra { kNothing, kStore, kReduction, kCopy };  // of kMemory, in Op::extra0

}  // namespace

extern "C" {

struct Chip {
  double agu, queue, slack, shared_bytes, port, l2_rate, hbm_rate, red, far, window, launch, branch, miss, lat_l1,
      lat_tma;
  int32_t youngest, ports;
};

// Of an instruction, wherever it occurs.
struct Op {
  int32_t kind, pipe, stall, yields, write, read, wait, extra0, extra1, extra2, is_branch, sources;
  double clocks, latency, size, shared;
  int32_t source[16];  // slot | register << 8 | keeps << 24
};

// What is particular to one execution of an instruction. off: its guard is false for all lanes.
struct Instance {
  int32_t off, hit, name, count;
  double size, shared, value;
  int64_t address;
};

struct Totals {
  double clocks, issued;
  double busy[kBusies];
  double idle[kReasons];
};
}

namespace {

struct Mbarrier {
  int64_t count = 0, pending = 0;
  double bytes = 0, latest = 0;  // bytes expected less those on their way; when the last of all arrives
  std::vector<double> flips;     // when each phase ended
  std::vector<struct Warp*> waiters;
};

struct Warp {
  struct Block* block;
  const int32_t *path, *instances;
  int64_t at = 0, length;
  int smsp;
  double ready, limit = 0, copies = 0, async_done = 0, bulk_done = 0;
  int64_t age;
  bool yields = false, blocked = false, idle_counted = false;
  std::array<std::vector<double>, 6> barriers;
  std::vector<double> groups;
};

struct Waiting {
  Warp* warp;
  bool arrive_only;
};

struct Block {
  int live = 0, warps = 0;
  std::map<int, std::vector<Waiting>> bars;
  std::map<int64_t, Mbarrier> mbarriers;
  std::vector<std::unique_ptr<Warp>> members;
};

double latest(const std::vector<double>& times) {
  double top = -1;
  for (double t : times) top = std::max(top, t);
  return top;
}

void add(std::vector<double>& times, double now, double done) {
  times.erase(std::remove_if(times.begin(), times.end(), [&](double t) { return t <= now; }), times.end());
  times.push_back(done);
}

}  // namespace

// Runs blocks 0 ... count - 1; warp w of block b takes trace traces[b * warps + w], whose instructions are
// positions[starts[t] ... starts[t + 1]] and instances[...] (0: none). Returns how many warps wait for ever, up to
// kStuck, and where.
extern "C" int simulate(const Chip* chip_, int, const Op* ops, const Instance* instance_table, const int64_t* starts,
                        const int32_t* positions, const int32_t* instances, int blocks, int warps,
                        const int32_t* traces, int held, Totals* totals, double* issues, double* waits, double* idles,
                        double* finished, int32_t* stuck) {
  const Chip& chip = *chip_;
  double bank_free[4][2] = {};
  struct Cached {
    const Warp* warp = nullptr;
    int register_ = -1;
  };
  Cached cached[4][8][2][2];
  double free_[4][7] = {};
  double shared_free = 0, port_free = 0, l2_free = 0, hbm_free = 0, end = 0;
  std::vector<Warp*> smsps[4];
  Warp* last[4] = {};
  double queued[4] = {kNever, kNever, kNever, kNever};
  double asleep[4] = {kNever, kNever, kNever, kNever};  // since when an SMSP has had no warp that can go on
  using Event = std::pair<double, int>;
  std::priority_queue<Event, std::vector<Event>, std::greater<Event>> heap;
  std::vector<std::unique_ptr<Block>> alive;
  int next_block = 0, n_finished = 0;
  int64_t age = 0;
  Totals& t = *totals;

  auto wake = [&](int s, double time) {
    if (time < queued[s]) {
      queued[s] = time;
      heap.push({time, s});
    }
  };
  auto start_block = [&](double time) {
    const int b = next_block++;
    alive.push_back(std::make_unique<Block>());
    Block* block = alive.back().get();
    for (int w = 0; w < warps; w++) {
      block->members.push_back(std::make_unique<Warp>());
      Warp* warp = block->members.back().get();
      const int trace = traces[b * warps + w];
      warp->block = block;
      warp->path = positions + starts[trace];
      warp->instances = instances + starts[trace];
      warp->length = starts[trace + 1] - starts[trace];
      warp->smsp = w % 4;
      warp->ready = time + w / 4;
      warp->age = ++age;
      block->live++, block->warps++;
      smsps[warp->smsp].push_back(warp);
    }
    for (int s = 0; s < 4; s++) wake(s, time);
  };
  auto flip = [&](Mbarrier& b, double now) {
    while (b.pending <= 0 && b.bytes <= 0 && b.count > 0) {
      b.flips.push_back(std::max(b.latest, now));
      b.pending += b.count;
      for (Warp* w : b.waiters) {
        w->blocked = false;
        wake(w->smsp, std::max(now + 1, std::ceil(b.flips.back())));
      }
      b.waiters.clear();
    }
  };

  struct When {
    double time;
    Reason why;
  };
  auto earliest = [&](Warp& warp) -> When {
    const Op& op = ops[warp.path[warp.at]];
    const int which = warp.instances[warp.at];
    const Instance& x = instance_table[which];
    const bool off = which && x.off;
    When w{warp.ready, kStall};
    auto later = [&](double time, Reason why) {
      if (time > w.time) w = {time, why};
    };
    for (int mask = op.wait, b = 0; mask; mask >>= 1, b++) {
      if (mask & 1 && !warp.barriers[b].empty()) later(latest(warp.barriers[b]), kDependency);
    }
    if (off) return w;
    const double* mine = free_[warp.smsp];
    if (op.sources) later(std::max(bank_free[warp.smsp][0], bank_free[warp.smsp][1]) - chip.window, kPorts);
    if (op.kind == kMemory) {
      later(mine[kAddress] - chip.agu * chip.queue, kQueue);
    } else if (op.pipe == kFma) {
      later(std::min(mine[kHeavy], mine[kLite]), kByFma);
    } else if (op.pipe != kNoPipe) {
      constexpr Reason kBy[] = {kByFma, kByFma, kByAlu, kByXu, kByTensor, kByUniform};
      later(mine[op.pipe], kBy[op.pipe]);
    }
    if (op.kind == kDepbar || op.kind == kWaitWgmma) {
      const int allowed = op.kind == kDepbar ? op.extra1 : op.extra0;
      auto& times = op.kind == kDepbar ? warp.barriers[op.extra0] : warp.groups;
      std::vector<double> pending;
      for (double at : times) {
        if (at > w.time) pending.push_back(at);
      }
      if (static_cast<int>(pending.size()) > allowed) {
        std::sort(pending.begin(), pending.end());
        later(pending[pending.size() - allowed - 1], op.kind == kDepbar ? kCopies : kByWgmma);
      }
    } else if (op.kind == kBarrierWait && which) {
      Mbarrier& b = warp.block->mbarriers[x.address];
      const int parity = static_cast<int>(x.value) & 1, phase = static_cast<int>(b.flips.size());
      if ((phase & 1) == parity) {
        if (!warp.blocked) b.waiters.push_back(&warp);
        warp.blocked = true;
        w = {kNever, kByMbarrier};
      } else if (phase > 0) {
        later(b.flips[phase - 1], kByMbarrier);
      }
    }
    return w;
  };

  for (int i = 0; i < std::min(held, blocks); i++) start_block(0.0);
  while (!heap.empty()) {
    const auto [now, s] = heap.top();
    heap.pop();
    if (now != queued[s]) continue;
    queued[s] = kNever;
    Warp *best = nullptr, *previous = last[s], *first = nullptr;
    When soonest{kNever, kEmpty}, chosen{};
    bool at_mbarrier = false;
    for (Warp* warp : smsps[s]) {
      if (warp->ready == kNever || warp->blocked) {
        at_mbarrier |= warp->blocked;
        continue;
      }
      const When w = earliest(*warp);
      if (w.time <= now + 1e-9) {
        const bool better = best == nullptr || (warp == previous && !warp->yields) ||
                            (!(best == previous && !best->yields) && (warp->age > best->age) == (chip.youngest != 0));
        if (better) best = warp, chosen = w;
      } else if (w.time < soonest.time) {
        soonest = w, first = warp;
      }
    }
    if (asleep[s] < kNever) {
      if (best || soonest.time < kNever) {
        const Reason why = smsps[s].empty() ? kEmpty : kByBarrier;
        t.idle[why] += now - asleep[s];
        const Warp* w = best ? best : first;
        idles[static_cast<int64_t>(w->path[w->at]) * kReasons + why] += now - asleep[s];
        asleep[s] = kNever;
      }
    }
    if (!best) {
      if (soonest.time < kNever) {
        const double step = std::max(std::ceil(soonest.time - 1e-9), now + 1);
        t.idle[soonest.why] += step - now;
        idles[static_cast<int64_t>(first->path[first->at]) * kReasons + soonest.why] += step - now;
        wake(s, step);
      } else if (asleep[s] == kNever) {
        asleep[s] = now;
      }
      continue;
    }
    Warp& warp = *best;
    last[s] = best;
    const int position = warp.path[warp.at], which = warp.instances[warp.at];
    const Op& op = ops[position];
    const Instance& x = instance_table[which];
    const bool off = which && x.off;
    const int kind = off && op.kind != kLeave ? int(kPlain) : op.kind;
    t.issued++, issues[position]++;
    if (now > warp.ready) {
      double* of = waits + static_cast<int64_t>(position) * kReasons;
      const double until = std::min(std::max(chosen.time, warp.ready), now);
      of[chosen.why] += until - warp.ready;
      of[kNotSelected] += now - until;
    }
    warp.yields = op.yields;
    warp.at++;
    warp.ready = now + std::max(1, op.stall);
    if (op.is_branch && warp.at < warp.length && warp.path[warp.at] != position + 1) warp.ready += chip.branch;
    double* mine = free_[s];
    double done = now + op.latency, read = done;
    if (op.sources && !off) {
      for (int i = 0; i < op.sources; i++) {
        const int slot = op.source[i] & 255, reg = op.source[i] >> 8 & 0xffff, bank = reg & 1;
        Cached& c = cached[s][slot & 7][reg >> 1 & 1][bank];
        if (c.warp != best || c.register_ != reg) {
          bank_free[s][bank] = std::max(bank_free[s][bank], now) + 1;
          t.busy[kBusyPorts] += 0.5;
        }
        c = op.source[i] >> 24 ? Cached{best, reg} : Cached{};
      }
    }
    // Bytes from or to the L2, and beyond it; when the last of them is there.
    auto move = [&](double begin, double size, bool reduction) {
      const double cost = reduction ? size / chip.red : size;
      port_free = std::max(port_free, begin) + cost / chip.port;
      l2_free = std::max(l2_free, begin) + cost / chip.l2_rate;
      hbm_free = std::max(hbm_free, begin) + size * chip.miss / chip.hbm_rate;
      t.busy[kBusyL2] += cost / chip.l2_rate;
      t.busy[kBusyHbm] += size * chip.miss / chip.hbm_rate;
      return std::max({begin, port_free, l2_free - chip.slack, hbm_free - chip.slack});
    };
    if (kind == kMemory) {
      const double size = which ? (x.hit ? 0 : x.size) : op.size, shared = which ? x.shared : op.shared;
      const double start = std::max(now + 2, mine[kAddress]);
      mine[kAddress] = start + chip.agu;
      t.busy[kBusyAgu] += chip.agu;
      const double begin = std::max(start + chip.agu, shared_free);
      shared_free = begin + shared;
      t.busy[kBusyShared] += shared;
      read = begin + shared;
      const double latency = which && x.hit ? chip.lat_l1 : op.latency;
      done = begin + shared - 1 + std::max(0.0, latency - chip.agu - 2);
      if (size > 0) {
        const double there = move(begin, size, op.extra0 == kReduction);
        done = chip.far + there;
        if (op.extra0 == kStore || op.extra0 == kReduction) {  // goes on without them, but the ports are taken
          read = std::max(read, there);
          done = read;
          end = std::max(end, read);
        }
      }
      if (op.extra0 == kCopy) warp.copies = std::max(warp.copies, done);
    } else if (kind == kWgmma) {
      const double start = std::max(now + 4, mine[kTensor]);
      mine[kTensor] = start + op.clocks;
      t.busy[kBusyTensor] += op.clocks;
      shared_free = std::max(shared_free, start) + op.shared;
      t.busy[kBusyShared] += op.shared;
      done = std::max(start + op.clocks, shared_free) + op.latency;
      warp.async_done = std::max(warp.async_done, done);
      if (op.extra0) add(warp.groups, now, warp.async_done);
    } else if (kind == kBulkLoad || kind == kBulkStore) {
      const double begin = std::max(now + op.latency, 0.0);
      const double shared = x.size / chip.shared_bytes;
      const double there = move(begin, x.size, op.extra0 == kReduction);
      t.busy[kBusyShared] += shared;
      shared_free = std::max(shared_free, begin) + shared;
      if (kind == kBulkLoad) {
        done = std::max(there, shared_free) + chip.far + chip.lat_tma;
        Mbarrier& b = warp.block->mbarriers[x.address];
        b.bytes -= x.size;
        b.latest = std::max(b.latest, done);
        flip(b, now);
      } else {
        warp.bulk_done = std::max(warp.bulk_done, std::max(there, shared_free) + chip.lat_tma);
        end = std::max(end, there);
      }
      done = read = now + op.latency;
    } else if (kind == kBulkCommit) {
      done = read = std::max(warp.bulk_done, now + 1);
    } else if (op.pipe == kFma && !off) {
      const int one = mine[kLite] <= mine[kHeavy] ? kLite : kHeavy;
      mine[one] = std::max(mine[one], now) + op.clocks;
      t.busy[kBusyFma] += op.clocks / 2;
    } else if (op.pipe != kNoPipe && !off) {
      constexpr Busy kOf[] = {kBusyFma, kBusyFma, kBusyAlu, kBusyXu, kBusyTensor, kBusyUniform};
      mine[op.pipe] = std::max(mine[op.pipe], now) + op.clocks;
      t.busy[kOf[op.pipe]] += op.clocks / (op.pipe == kHeavy ? 2 : 1);
      if (kind == kSlow) done = mine[op.pipe] + op.latency, read = now + 8;
    }
    if (kind == kGroup && op.write < 6) {
      done = std::max({warp.copies, now + 10, latest(warp.barriers[op.write])});
    }
    if (off) done = read = now + 2;
    if (op.write < 6) add(warp.barriers[op.write], now, done);
    if (op.read < 6) add(warp.barriers[op.read], now, read);
    if (kind == kBarrierInit && which) {
      Mbarrier& b = warp.block->mbarriers[x.address];
      b.count = b.pending = static_cast<int64_t>(x.value);
    } else if ((kind == kBarrierArrive || kind == kCopyArrive) && which) {
      Mbarrier& b = warp.block->mbarriers[x.address];
      b.bytes += x.value;
      b.pending -= x.count;
      b.latest = std::max(b.latest, (kind == kCopyArrive ? std::max(now, warp.copies) : now) + op.latency);
      flip(b, now);
    }
    if (kind == kBar) {
      const int name = which ? x.name : op.extra0, count = which ? x.count : op.extra1;
      auto& here = warp.block->bars[name];
      here.push_back({best, op.extra2 != 0});
      if (static_cast<int>(here.size()) >= (count ? count : warp.block->warps)) {
        for (const Waiting& other : here) {
          if (other.arrive_only) continue;
          if (other.warp != best) {
            waits[static_cast<int64_t>(position) * kReasons + kByBarrier] += now - other.warp->limit;
          }
          other.warp->ready = now + std::max(op.latency, static_cast<double>(op.stall));
          wake(other.warp->smsp, now + 1);
        }
        here.clear();
      } else if (!op.extra2) {
        warp.limit = now;
        warp.ready = kNever;
      }
    } else if (kind == kLeave && warp.at >= warp.length) {
      smsps[s].erase(std::find(smsps[s].begin(), smsps[s].end(), best));
      if (last[s] == best) last[s] = nullptr;
      Block* block = warp.block;
      end = std::max(end, now);
      if (--block->live == 0) {
        finished[n_finished++] = now;
        for (int i = 0; i < 4; i++) {  // no warp of it is looked at again
          for (auto& slot : cached[i]) {
            for (auto& half : slot) {
              for (Cached& one : half) {
                if (one.warp && one.warp->block == block) one = Cached{};
              }
            }
          }
          if (last[i] && last[i]->block == block) last[i] = nullptr;
        }
        alive.erase(std::find_if(alive.begin(), alive.end(), [&](auto& b) { return b.get() == block; }));
        if (next_block < blocks) start_block(now + chip.launch);
      }
    }
    wake(s, now + 1);
  }
  t.clocks = end;
  t.busy[kIssue] = t.issued;
  int left = 0;
  for (auto& warps_left : smsps) {
    for (const Warp* w : warps_left) {
      if (left < kStuck) stuck[left++] = w->path[std::max<int64_t>(0, w->at - (w->blocked ? 0 : 1))];
    }
  }
  return left;
}
