//go:build !amd64

package probe

// cpuid has no leaves where there is no such instruction.
func cpuid(uint32, uint32) (a, b, c, d uint32) { return 0, 0, 0, 0 }

// rdtsc is 0 where there is no such counter.
func rdtsc() uint64 { return 0 }
