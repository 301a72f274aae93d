// A team of threads that runs one function together, with barriers.
//
// It is our own, and not OpenMP's, so that the kernels need nothing but C++: compilers and systems
// come without OpenMP. Threads wait a little before they sleep, for a step has hundreds of barriers.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#ifndef _WIN32
#include <unistd.h>
#endif

namespace lmsmith {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that threads wait for: they look at it for some 50 microseconds, then sleep.
class Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }

    void advance() {
        value_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
        std::lock_guard<std::mutex> lock(mutex_);
        changed_.notify_all();
    }

    void wait_while(uint32_t seen) {
        for (int i = 0; i < LOOKS; ++i, pause())
            if (value() != seen) return;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        changed_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }

  private:
    static const int LOOKS = 2000;
    std::atomic<uint32_t> value_{0}, sleepers_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

// What is shared by the threads that run a function.
struct Meeting {
    int count = 1;
    std::atomic<int> arrived{0};
    std::atomic<int64_t> next{0};
    Signal met;
};

// One of these threads.
class Member {
  public:
    Member(Meeting& meeting, int number)
        : meeting_(meeting), number_(number), count_(meeting.count) {}

    // Until all are here; what was written before is seen by all after.
    void barrier() {
        const uint32_t seen = meeting_.met.value();
        if (meeting_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < count_) {
            meeting_.met.wait_while(seen);
            return;
        }
        meeting_.arrived.store(0, std::memory_order_relaxed);
        meeting_.next.store(0, std::memory_order_relaxed);
        meeting_.met.advance();
    }

    int64_t begin(int64_t all) const { return all * number_ / count_; }
    int64_t end(int64_t all) const { return all * (number_ + 1) / count_; }

    // This thread's equal share of 0 to all.
    template <typename Function>
    void share(int64_t all, Function function) const {
        for (int64_t i = begin(all); i < end(all); ++i) function(i);
    }

    // The next of 0 to all that nobody has taken since the last barrier, again and again.
    template <typename Function>
    void take(int64_t all, Function function) {
        int64_t i;
        while ((i = meeting_.next.fetch_add(1, std::memory_order_relaxed)) < all) function(i);
    }

  private:
    Meeting& meeting_;
    int number_, count_;
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

    // function(member) in so many threads, of which the caller is one.
    template <typename Function>
    void run(int threads, Function function) {
        std::lock_guard<std::mutex> lock(callers_);
        const int count = std::max(threads, 1);
        while (int(workers_.size()) < count - 1) hire();
        meeting_.count = count;
        meeting_.arrived = 0, meeting_.next = 0;
        data_ = &function;
        call_ = [](void* data, Member& member) { (*static_cast<Function*>(data))(member); };
        for (int i = 0; i < count - 1; ++i) workers_[i]->begin.advance();
        Member member(meeting_, 0);
        function(member);
        if (count > 1) member.barrier();
    }

  private:
    struct Worker {
        Signal begin;
    };

    void hire() {
        workers_.push_back(std::make_unique<Worker>());
        Worker* worker = workers_.back().get();
        const int number = int(workers_.size());
        const uint32_t seen = worker->begin.value();
        std::thread([this, worker, number, seen] { work(*worker, number, seen); }).detach();
    }

    void work(Worker& worker, int number, uint32_t seen) {
        for (;; ++seen) {
            worker.begin.wait_while(seen);
            Member member(meeting_, number);
            call_(data_, member);
            member.barrier();
        }
    }

    std::mutex callers_;
    std::vector<std::unique_ptr<Worker>> workers_;
    Meeting meeting_;
    void* data_ = nullptr;
    void (*call_)(void*, Member&) = nullptr;
#ifndef _WIN32
    pid_t process_ = getpid();
#endif
};

// function(member) in so many threads; in the caller alone for one.
template <typename Function>
inline void in_team(int threads, Function function) {
    if (threads > 1) return Team::only().run(threads, function);
    Meeting alone;
    Member member(alone, 0);
    function(member);
}

// function(i) for 0 to all, shared out among threads.
template <typename Function>
inline void for_all(int threads, int64_t all, Function function) {
    in_team(threads, [&](Member& member) { member.share(all, function); });
}

}  // namespace lmsmith
