package policy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

// Limits of one expression. Cost is CEL's own unit, about one step each; the worst
// case is computed when the policy is loaded, and the real one is stopped too.
const (
	MaxExpression = 2048 // bytes
	MaxCost       = 50_000
	maxDepth      = 24
)

// variable is one claim as rules see it.
type variable struct {
	name string
	kind *cel.Type
	get  func(*Claims) any
	doc  string
}

// variables is the schema of the claims, in the order in which they are shown.
var variables = []variable{
	{"state", cel.StringType, func(c *Claims) any { return c.State }, "unknown, enrolling, trusted, suspect, quarantined"},
	{"state_age", cel.DurationType, func(c *Claims) any { return c.StateAge }, "since the state is what it is"},
	{"reason", cel.StringType, func(c *Claims) any { return c.Reason }, "typed reason of the last change of state"},
	{"tier", cel.StringType, func(c *Claims) any { return c.Tier }, "T0, T1, T2"},
	{"posture", cel.StringType, func(c *Claims) any { return c.Posture }, "of the Pi: none, card-theft, signed-boot, signed-boot+otp"},
	{"session", cel.StringType, func(c *Claims) any { return c.Session }, "boot session, \"\" before the first"},
	{"session_age", cel.DurationType, func(c *Claims) any { return c.SessionAge }, "since the boot request"},
	{"image", cel.StringType, func(c *Claims) any { return c.Image }, "name of the claimed image, \"\" before the claim"},
	{"version", cel.IntType, func(c *Claims) any { return c.Version }, "of the claimed image"},
	{"lab_image", cel.BoolType, func(c *Claims) any { return c.LabImage }, "the image has a command channel"},
	{"challenges", cel.IntType, func(c *Claims) any { return c.Challenges }, "judged in this session"},
	{"failures", cel.IntType, func(c *Claims) any { return c.Failures }, "of them"},
	{"findings", cel.ListType(findingType), func(c *Claims) any { return c.Findings }, "of this session, the newest first: probe, reason, class (info, soft, fatal), detail, age"},
	{"drift", cel.StringType, func(c *Claims) any { return c.Drift }, "highest class among the findings about hardware, \"\" without one"},
	{"warnings", cel.ListType(cel.StringType), func(c *Claims) any { return c.Warnings }, "of the verdict"},
	{"agent", cel.BoolType, func(c *Claims) any { return c.Agent }, "the agent's channel is up"},
	{"gateway", cel.BoolType, func(c *Claims) any { return c.Gateway }, "gatewayd answers; without it the claims below are its last words"},
	{"carrier", cel.BoolType, func(c *Claims) any { return c.Carrier }, "the cable carries"},
	{"link_losses", cel.IntType, func(c *Claims) any { return c.LinkLosses }, "of the carrier in this session"},
	{"tasks", cel.ListType(cel.StringType), func(c *Claims) any { return c.Tasks }, "with a grant"},
	{"violations", cel.IntType, func(c *Claims) any { return c.Violations }, "packets dropped since gatewayd's tables were made"},
	{"banned", cel.BoolType, func(c *Claims) any { return c.Banned }, "the PC's port is banned"},
}

var findingType = cel.ObjectType("policy.Finding")

// Schema describes the claims: name, CEL type, meaning.
func Schema() (rows [][3]string) {
	for _, v := range variables {
		rows = append(rows, [3]string{v.name, v.kind.String(), v.doc})
	}
	return rows
}

var environment = sync.OnceValues(func() (*cel.Env, error) {
	options := []cel.EnvOption{
		ext.NativeTypes(ext.ParseStructTags(true), reflect.TypeFor[Finding]()),
		cel.ParserExpressionSizeLimit(MaxExpression), cel.ParserRecursionLimit(maxDepth), cel.ParserErrorRecoveryLimit(4),
	}
	for _, v := range variables {
		options = append(options, cel.Variable(v.name, v.kind))
	}
	return cel.NewEnv(options...)
})

// condition is a compiled expression.
type condition struct {
	text    string
	ast     *cel.Ast
	program cel.Program
	reads   []int // the variables that it names, by their place in variables
}

var errNotBool = errors.New("does not say yes or no")

// compile checks text: grammar, types, and the highest cost that it can have.
func compile(text string) (*condition, error) {
	if len(text) > MaxExpression {
		return nil, fmt.Errorf("%d bytes, at most %d", len(text), MaxExpression)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("%w: it is of type %s", errNotBool, ast.OutputType())
	}
	cost, err := env.EstimateCost(ast, sizes{})
	if err != nil {
		return nil, err
	}
	if cost.Max > MaxCost {
		return nil, fmt.Errorf("it may cost %d steps, at most %d", cost.Max, MaxCost)
	}
	program, err := env.Program(ast, cel.CostLimit(MaxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, err
	}
	return &condition{text, ast, program, named(ast)}, nil
}

// named lists the variables that a checked expression refers to.
func named(a *cel.Ast) (places []int) {
	for _, r := range a.NativeRep().ReferenceMap() {
		i := slices.IndexFunc(variables, func(v variable) bool { return v.name == strings.TrimPrefix(r.Name, ".") })
		if i >= 0 && !slices.Contains(places, i) {
			places = append(places, i)
		}
	}
	return places
}

// activation gives the claims their names. A value is made when an expression asks for one: most ask for few.
type activation struct{ *Claims }

// ResolveName implements cel.Activation.
func (a activation) ResolveName(name string) (any, bool) {
	for i := range variables {
		if v := &variables[i]; v.name == name {
			return v.get(a.Claims), true
		}
	}
	return nil, false
}

// Parent implements cel.Activation.
func (activation) Parent() cel.Activation { return nil }

// changed tells whether anything that the expression reads differs between two claims.
// What it says of claims depends on nothing else.
func (c *condition) changed(a, b *Claims) bool {
	return slices.ContainsFunc(c.reads, func(i int) bool { return !equal(variables[i].get(a), variables[i].get(b)) })
}

func equal(a, b any) bool {
	switch a := a.(type) {
	case []string:
		return slices.Equal(a, b.([]string))
	case []Finding:
		return slices.Equal(a, b.([]Finding))
	}
	return a == b
}

func (c *condition) eval(claims *Claims) (bool, error) {
	out, _, err := c.program.Eval(activation{claims})
	if err != nil {
		return false, err
	}
	return out == types.True, nil
}

// sizes tells the estimate how long a list or a text can be.
type sizes struct{}

func (sizes) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	switch {
	case n.Type().IsExactType(cel.StringType):
		return &checker.SizeEstimate{Min: 0, Max: MaxText}
	case n.Type().Kind() == types.ListKind:
		return &checker.SizeEstimate{Min: 0, Max: MaxFindings}
	}
	return nil
}

func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}
