// Package gate is the OCI runtime that the engine runs its containers with: runc, and before
// the one command that lets a container's program run a question to the guard. So the
// engine can make a container (its processes, namespaces and mounts) while the guard still compares
// the files that it is made of, and nothing of them runs before that is done; and who gets to the
// engine past its other locks starts nothing, for the guard lets go only what it is starting itself.
//
// runc makes a container in two steps, as the OCI runtime specification has them (runtime.md, Lifecycle): after
// "create" everything is there and runc's own process waits, "start" lets it execute the program. Commands that
// put a program into a container in another way (exec, run, restore) nobody here needs: they are refused. So is
// what is not known.
//
// Program cmd/runc-gate is Main and nothing else. It is run several times for each container, so this
// package imports little. Package guard answers.
package gate

import "time"

// Runtime is the name by which the engine knows this runtime: "runtimes" in daemon.json.
const Runtime = "portcullis"

// Socket is where the guard answers, and SocketEnv the variable of the engine's environment
// that names another place.
const (
	Socket    = "/run/portcullis/verifierd/gate.sock"
	SocketEnv = "PORTCULLIS_GATE"
)

// Wait is how long the guard may take: many times what the largest image needs that an engine
// is asked to start.
const Wait = 10 * time.Minute

// The question is the container's ID and a newline. The answer is one of two lines and the end of the
// connection; the second has a reason behind it.
const (
	idSize       = 64
	QuestionSize = idSize + 1
	MaxAnswer    = 512 // an answer has fewer bytes

	letGo = "go\n"
	no    = "no "
)
