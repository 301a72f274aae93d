// A team of threads that does the steps of one function together.
//
// It is our own, and not OpenMP's, so that the kernels need nothing but C++: compilers and systems
// come without OpenMP. A token has hundreds of steps of microseconds each, and other programs run on
// the same processors, so nobody waits for a thread that is not there: each step is many ranges, and
// whoever is free takes the next one. A thread that comes late finds the steps done and passes by.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
#ifndef _WIN32
#include <unistd.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace lmsmith {

const int LOOKS = 2000;       // some 50 microseconds, before other threads may run here
const int YIELDS = 2000;      // about a millisecond, before a thread without work sleeps
const int RANGES_EACH = 8;    // of a step, by thread

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The processor that this thread runs on; -1 where the system does not say.
inline int processor() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

// Moves this thread to another processor if it runs on this one and may run elsewhere: Linux wakes a
// thread where the one runs that wakes it, and leaves both there, each waiting for the other.
inline void leave(int taken) {
#ifdef __linux__
    cpu_set_t allowed, others;
    if (taken < 0 || sched_getcpu() != taken) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(taken, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof allowed, &allowed);
#else
    (void)taken;
#endif
}

// The step that is done now, and how much of it: four numbers of 16 bits that change together.
struct Progress {
    uint16_t step, ranges, taken, done;
    bool is_done() const { return done == ranges; }
    uint64_t packed() const {
        return uint64_t(step) << 48 | uint64_t(ranges) << 32 | uint64_t(taken) << 16 | done;
    }
    explicit Progress(uint64_t all)
        : step(all >> 48), ranges(all >> 32), taken(all >> 16), done(all) {}
    Progress(uint16_t step, uint16_t ranges) : step(step), ranges(ranges), taken(0), done(0) {}
};
const uint64_t ONE_TAKEN = 1 << 16, ONE_DONE = 1;

class Member;

// A function that threads run, and its progress. A late thread may hold it when the call is over, so
// the function keeps by value all that it reads outside of its steps.
class Job {
  public:
    explicit Job(int threads) : threads(threads) {}
    virtual ~Job() = default;
    virtual void run(Member& member) = 0;

    const int threads;
    std::atomic<uint64_t> progress{Progress(0xffff, 0).packed()};  // the step before the first
    std::atomic<int> caller_at{-1};  // processor
};

// One of the threads that run a function. All come to the same steps in the same order.
class Member {
  public:
    explicit Member(Job* job) : job_(job) {}

    bool is_caller = false;

    // function(begin, end) for ranges that are 0 to all together, each taken by whoever is free;
    // returns when all is done. What was written before a step is seen by all in it.
    template <typename Function>
    void divide(int64_t all, Function&& function, int most = 0) {
        if (all == 0) return;
        if (!job_) return function(int64_t(0), all);
        const int64_t ranges = std::min(all, int64_t(most ? most : RANGES_EACH * job_->threads));
        const uint16_t step = step_++;
        if (is_caller) job_->caller_at.store(processor(), std::memory_order_relaxed);
        else leave(job_->caller_at.load(std::memory_order_relaxed));
        if (!open(step, uint16_t(ranges))) return;
        for (uint64_t seen = load(); Progress(seen).step == step; seen = load()) {
            const Progress now(seen);
            if (now.taken == ranges) return wait(step);
            if (!job_->progress.compare_exchange_weak(seen, seen + ONE_TAKEN)) continue;
            function(all * now.taken / ranges, all * (now.taken + 1) / ranges);
            job_->progress.fetch_add(ONE_DONE);
        }
    }

    // function(i) for 0 to all.
    template <typename Function>
    void each(int64_t all, Function function, int most = 0) {
        divide(all, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) function(i);
        }, most);
    }

  private:
    uint64_t load() const { return job_->progress.load(std::memory_order_acquire); }

    // Whether the step is the current one; the first to come makes it so.
    bool open(uint16_t step, uint16_t ranges) {
        for (uint64_t seen = load();; seen = load()) {
            const int16_t ahead = int16_t(Progress(seen).step - step);
            if (ahead >= 0) return ahead == 0;
            if (job_->progress.compare_exchange_weak(seen, Progress(step, ranges).packed()))
                return true;
        }
    }

    void wait(uint16_t step) const {
        for (int looks = 0;; ++looks) {
            const Progress now(load());
            if (now.step != step || now.is_done()) return;
            if (looks < LOOKS) pause();
            else std::this_thread::yield();
        }
    }

    Job* job_;  // null for a thread alone
    uint16_t step_ = 0;
};

class Team {
  public:
    static Team& only() {
        // Never destroyed: threads may wait in it while the process ends.
        static std::mutex making;
        static Team* team = nullptr;
        std::lock_guard<std::mutex> lock(making);
#ifndef _WIN32
        if (team && team->process_ != getpid()) team = nullptr;  // a fork has no threads
#endif
        if (!team) team = new Team;
        return *team;
    }

    // function(member) in so many threads, of which the caller is one; in the caller alone while
    // another caller has the team.
    template <typename Function>
    void run(int threads, Function function) {
        std::unique_lock<std::mutex> ours(callers_, std::try_to_lock);
        if (!ours) {
            Member alone(nullptr);
            return function(alone);
        }
        auto job = std::make_shared<JobOf<Function>>(threads, std::move(function));
        job->caller_at = processor();
        while (hired_ < threads - 1) hire();
        call(job);
        Member member(job.get());
        member.is_caller = true;
        job->run(member);
    }

  private:
    template <typename Function>
    class JobOf : public Job {
      public:
        JobOf(int threads, Function function) : Job(threads), function_(std::move(function)) {}
        void run(Member& member) override { function_(member); }

      private:
        Function function_;
    };

    void call(std::shared_ptr<Job> job) {
        std::unique_lock<std::mutex> lock(mutex_);
        job_ = std::move(job);
        calls_.fetch_add(1, std::memory_order_release);
        const bool any = sleepers_ > 0;
        lock.unlock();
        if (any) called_.notify_all();
    }

    void hire() {
        const int number = ++hired_;
        const uint32_t seen = calls_.load(std::memory_order_acquire);
        std::thread([this, number, seen] { work(number, seen); }).detach();
    }

    void work(int number, uint32_t seen) {
        for (;;) {
            wait_while(seen);
            std::shared_ptr<Job> job;
            {
                std::lock_guard<std::mutex> lock(mutex_);
                job = job_, seen = calls_.load(std::memory_order_relaxed);
            }
            if (number >= job->threads) continue;
            Member member(job.get());
            job->run(member);
        }
    }

    void wait_while(uint32_t seen) {
        const auto called = [&] { return calls_.load(std::memory_order_acquire) != seen; };
        for (int i = 0; i < LOOKS; ++i, pause())
            if (called()) return;
        for (int i = 0; i < YIELDS; ++i, std::this_thread::yield())
            if (called()) return;
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        called_.wait(lock, called);
        --sleepers_;
    }

    std::mutex callers_, mutex_;
    std::condition_variable called_;
    std::shared_ptr<Job> job_;
    std::atomic<uint32_t> calls_{0};
    int hired_ = 0, sleepers_ = 0;
#ifndef _WIN32
    pid_t process_ = getpid();
#endif
};

// function(member) in so many threads; in the caller alone for one. Threads that come late may hold
// it after the call, so it keeps by value what it reads outside of its steps.
template <typename Function>
inline void in_team(int threads, Function function) {
    if (threads > 1) return Team::only().run(threads, std::move(function));
    Member alone(nullptr);
    function(alone);
}

// function(i) for 0 to all, shared out among threads.
template <typename Function>
inline void for_all(int threads, int64_t all, Function function) {
    in_team(threads, [=](Member& member) { member.each(all, function); });
}

}  // namespace lmsmith
