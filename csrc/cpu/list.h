// std::vector for the kernels: the allocator gives its functions a name of the target's own (targets.h).
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace projkern::cpu::PROJKERN_TARGET {

template <class T>
struct Allocator {
    using value_type = T;

    Allocator() = default;
    template <class U>
    Allocator(const Allocator<U>&) {}

    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T))); }
    void deallocate(T* p, size_t) { ::operator delete(p); }

    template <class U>
    bool operator==(const Allocator<U>&) const {
        return true;
    }
    template <class U>
    bool operator!=(const Allocator<U>&) const {
        return false;
    }
};

template <class T>
using List = std::vector<T, Allocator<T>>;

}  // namespace projkern::cpu::PROJKERN_TARGET
