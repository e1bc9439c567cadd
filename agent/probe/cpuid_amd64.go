package probe

// cpuid executes CPUID with EAX and ECX set.
func cpuid(eax, ecx uint32) (a, b, c, d uint32)

// rdtsc reads the time stamp counter.
func rdtsc() uint64
