package debroot

import "time"

// Progress is told what the build does. Stages that take longer than a moment
// report how far they are; all is safe to call from one goroutine at a time.
type Progress interface {
	// Stage begins; it ends when the next one begins or the build is over.
	Stage(name, detail string)
	// Step tells how much of the running stage is done, in bytes; a total of less than
	// a million counts something else.
	Step(done, total int64)
	// Done ends the running stage; cached tells that nothing had to be made.
	Done(cached bool, took time.Duration)
}

// Quiet reports nothing.
type Quiet struct{}

// Stage does nothing.
func (Quiet) Stage(string, string) {}

// Step does nothing.
func (Quiet) Step(int64, int64) {}

// Done does nothing.
func (Quiet) Done(bool, time.Duration) {}
