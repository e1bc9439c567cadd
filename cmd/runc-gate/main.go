// Command runc-gate is the OCI runtime of the engine behind verifierd: runc, whose containers'
// programs run when the guard lets them. See package verifier/gate.
package main

import (
	"os"

	"portcullis/verifier/gate"
)

func main() { os.Exit(gate.Main(os.Args)) }
